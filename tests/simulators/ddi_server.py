"""A fleet server of a few lines, for tests of what one device does with its answers. Real HTTP, no database."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable
from typing import Any

from tests.simulators.device import Release

CONTROLLER = "/default/controller/v1/kitchen-1"


class DdiServer:
    """Offers what a test puts into `order`; a context manager."""

    def __init__(self) -> None:
        self.order: tuple[str, Release] | None = None
        self.cancel = ""
        self.closed_at = ""
        """The report that is answered with 410, `execution`; from then on the order is not offered any more."""
        self.reports: list[tuple[str, str, str]] = []
        """(resource, action, execution) of each feedback."""
        self.tokens: list[str] = []
        """That devices enrolled with."""
        self.on_cancel: Callable[[], None] = lambda: None

    def __enter__(self) -> DdiServer:
        desk = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(*desk.get(self.path))

            def do_PUT(self) -> None:
                self._read()
                self._answer(200, {})

            def do_POST(self) -> None:
                self._answer(*desk.post(self.path, json.loads(self._read())))

            def _read(self) -> bytes:
                return self.rfile.read(int(self.headers["Content-Length"]))

            def _answer(self, status: int, body: Any) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def get(self, path: str) -> tuple[int, Any]:
        if path == CONTROLLER:
            links = {}
            if self.cancel:
                links["cancelAction"] = {"href": f"{self.url}{CONTROLLER}/cancelAction/{self.cancel}"}
            elif self.order is not None:
                links["deploymentBase"] = {"href": f"{self.url}{CONTROLLER}/deploymentBase/{self.order[0]}"}
            return 200, {"config": {"polling": {"sleep": "00:00:01"}}, "_links": links}
        if self.order is None or path != f"{CONTROLLER}/deploymentBase/{self.order[0]}":
            return 404, {}
        action, release = self.order
        artifact = {"filename": "manifest.json", "hashes": {"sha256": release.digest[7:]}, "size": len(release.data)}
        chunk = {
            "part": "edgegen-bundle",
            "version": release.manifest.version,
            "name": release.manifest.name,
            "artifacts": [artifact],
            "metadata": [{"key": "edgegen.target", "value": release.target}],
        }
        return 200, {"id": action, "deployment": {"download": "forced", "update": "forced", "chunks": [chunk]}}

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        if path == "/enrol":
            self.tokens.append(body["token"])
            answer = {"device": body["device"], "group": "g", "controller": CONTROLLER, "repository": "", "pollS": 1}
            return 200, answer
        resource, action, _ = path.removeprefix(CONTROLLER + "/").split("/")
        execution = body["status"]["execution"]
        self.reports.append((resource, action, execution))
        if resource == "cancelAction":
            self.on_cancel()
            self.cancel, self.order = "", None
        elif execution == self.closed_at:
            self.order = None
            return 410, {}
        elif execution == "closed":
            self.order = None
        return 200, {}
