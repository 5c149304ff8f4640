"""A device that speaks the wire and installs nothing: for tests of the server with many of them, over real HTTP."""

from __future__ import annotations

import http.client
import json
import secrets
from typing import Any
from urllib.parse import urlsplit

GOOD, BAD, SILENT = "good", "bad", "silent"
_STEPS = (("download", "fetch"), ("downloaded", "stage"), ("proceeding", "probation"))


class DdiDevice:
    """One device. `step` does one thing, as far as the server answers; nothing is lost when it does not."""

    def __init__(self, name: str, url: str) -> None:
        self.name, self.url = name, url
        self.token = secrets.token_urlsafe(32)
        self.running = ""
        self.enrolled = False
        self.verdicts: dict[str, str] = {}
        """Manifest digest → what happens to it here; `good` where none is named."""
        self.unanswered = 0
        self.working: dict[str, Any] | None = None
        self.installed: list[str] = []

    def enrol(self, token: str) -> None:
        """Introduce itself; again until it is answered."""
        try:
            status, _ = self.call("POST", "/enrol", {"device": self.name, "token": self.token}, f"EnrolToken {token}")
        except OSError:
            self.unanswered += 1
            return
        assert status == 200, status
        self.enrolled = True

    def step(self) -> None:
        """Poll once and do what the answer says."""
        try:
            self._step()
        except (OSError, http.client.HTTPException):
            self.unanswered += 1

    def poll(self) -> dict[str, Any]:
        status, answer = self.call("GET", f"/default/controller/v1/{self.name}")
        assert status == 200, (status, answer)
        return dict(answer["_links"])

    def feedback(self, action: str, execution: str, finished: str, *details: str, kind: str = "deploymentBase") -> int:
        body = {"status": {"execution": execution, "result": {"finished": finished}, "details": list(details)}}
        path = f"/default/controller/v1/{self.name}/{kind}/{action}/feedback"
        return self.call("POST", path, body)[0]

    def call(self, method: str, path: str, body: Any = None, authorization: str = "") -> tuple[int, Any]:
        """One request; status and decoded answer."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=20)
        headers = {"Authorization": authorization or f"TargetToken {self.token}", "Connection": "close"}
        headers["X-Edgegen-Running"] = self.running or "none"
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"null")
        finally:
            connection.close()

    def _step(self) -> None:
        links = self.poll()
        if "cancelAction" in links:
            action = links["cancelAction"]["href"].rpartition("/")[2]
            assert self.feedback(action, "closed", "success", kind="cancelAction") in (200, 410)
            self.working = None
        elif "deploymentBase" in links:
            self._work(links["deploymentBase"]["href"])

    def _work(self, href: str) -> None:
        action = href.rpartition("/")[2]
        if self.working is None or self.working["action"] != action:
            status, told = self.call("GET", urlsplit(href).path)
            if status == 410:
                return
            assert status == 200, (status, told)
            digest = "sha256:" + told["deployment"]["chunks"][0]["artifacts"][0]["hashes"]["sha256"]
            self.working = {"action": action, "digest": digest, "step": 0}
        work = self.working
        verdict = self.verdicts.get(work["digest"], GOOD)
        if verdict == SILENT and work["step"] == 1:
            return
        if work["step"] < len(_STEPS):
            execution, phase = _STEPS[work["step"]]
            status = self.feedback(action, execution, "none", f"phase={phase}")
        elif verdict == GOOD:
            if self.running != work["digest"]:
                self.running = work["digest"]
                self.installed.append(work["digest"])
            status = self.feedback(action, "closed", "success", "phase=confirmed")
        else:
            status = self.feedback(action, "closed", "failure", "phase=rolled-back", "reason=golden")
        if status == 410 or work["step"] == len(_STEPS):
            self.working = None
            return
        assert status == 200, status
        work["step"] += 1
