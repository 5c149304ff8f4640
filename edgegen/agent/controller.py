"""The device's side of the wire to a fleet server: polls, reports, introduces itself (see `records.deployment`)."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import quote, urljoin

import msgspec
import urllib3

from edgegen.agent.config import AgentConfig
from edgegen.agent.disk import Disk, replace_file
from edgegen.agent.journal import Action
from edgegen.bundle.sources import read_within, reason
from edgegen.common.codec import decode_json, encode_json, read_bytes
from edgegen.errors import ConfigError, NetworkError, TrustError
from edgegen.records.base import Record
from edgegen.records.deployment import (
    CANARY_LINK,
    EXECUTION_OF,
    MANIFEST_PART,
    REPOSITORY_KEY,
    RUNNING_HEADER,
    TARGET_KEY,
    TENANT,
    Attributes,
    DeploymentBase,
    Enrolled,
    Enrolment,
    Execution,
    Feedback,
    Finished,
    Outcome,
    Phase,
    Poll,
    Status,
)

T = TypeVar("T")

_TIMEOUT_S = 20.0
_DEADLINE_S = 60.0
"""Longest time for a whole answer, however its bytes drip in."""
_LARGEST_ANSWER = 4 << 20


class Credential(Record, frozen=True):
    """`credential.json`: who this device is for the server."""

    device: str
    token: str
    url: str
    """Of the server that it was made for."""
    controller: str = ""
    """URL to poll; empty: the server has not answered yet."""
    repository: str = ""
    poll_s: float = 60.0


class Order(NamedTuple):
    """A release that the server wants here."""

    action: str
    target: str
    digest: str
    repository: str


class Work(NamedTuple):
    """What a poll brought."""

    order: Order | None
    cancel: str
    """Id of an action to drop, empty if none."""
    poll_s: float
    wants_attributes: bool
    canaries: bool = False
    """Whether the golden prompts are to be answered again now."""


class Answer(NamedTuple):
    """What a server says to something posted."""

    status: int
    body: bytes
    retry_after: str
    """Its header, empty if it has none."""


class OverError(NetworkError):
    """The server says that the action is over or not ours; `deploymentBase` will not name it again.

    Attributes:
        status: HTTP's.
    """

    retryable = False

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class Controller:
    """One device at one server."""

    def __init__(
        self, config: AgentConfig, folder: Path, disk: Disk, *, say: Callable[[str], None] = lambda _: None
    ) -> None:
        """Read the credential, if the device has one already; the server is not asked yet.

        One that cannot be read is put aside, and the device enrols anew.

        Args:
            folder: the agent's.
            say: told of that.
        """
        self._config, self._path, self._disk = config, folder / "credential.json", disk
        self._pool = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=_TIMEOUT_S, read=_TIMEOUT_S),
            retries=False,
            headers={"User-Agent": "edgegen-agent", "Accept": "application/json"},
        )
        self._credential = self._read(say)

    def _read(self, say: Callable[[str], None]) -> Credential | None:
        if not self._path.is_file():
            return None
        try:
            return decode_json(read_bytes(self._path), Credential, where=str(self._path))
        except ConfigError as error:
            aside = self._path.with_name(f"{self._path.name}.damaged")
            self._disk.rename(self._path, aside)
            self._disk.sync_folder(self._path.parent)
            say(f"{error}; it is put aside as {aside.name}, and this device enrols anew")
            return None

    @property
    def repository(self) -> str:
        """URL of the repository, as the server said when the device enrolled."""
        return self._credential.repository if self._credential else ""

    def enrol(self, attributes: dict[str, str]) -> None:
        """Introduce the device, once. Asking again after a lost answer is answered the same.

        Raises:
            ConfigError: no token to enrol with.
            TrustError: the server refuses the token or knows the device with another credential.
            NetworkError: it cannot be reached.
        """
        url = self._config.fleet.url.rstrip("/")
        known = self._credential
        if known is not None and known.controller and known.url == url:
            return
        if known is None or known.url != url:
            known = Credential(device=self._config.device_name, token=secrets.token_urlsafe(32), url=url)
            self._save(known)
        wanted = Enrolment(device=known.device, token=known.token, attributes=attributes)
        token = _enrol_token(self._config.fleet.enrol_token_file)
        sent = {"Authorization": f"EnrolToken {token}"}
        try:
            answer = self._ask("POST", f"{url}/enrol", wanted, kind=Enrolled, headers=sent)
        except OverError as error:
            if error.status != 409:
                raise
            raise TrustError(
                f"{url}: the server knows a device {known.device!r} with another credential",
                hint="If that one is gone or was this one, free the name with `edgegen fleet forget`, or bring "
                "credential.json back; else give this one another name (device in agent.toml).",
            ) from error
        self._save(
            msgspec.structs.replace(
                known,
                controller=urljoin(url + "/", answer.controller),
                repository=urljoin(url + "/", answer.repository) if answer.repository else "",
                poll_s=answer.poll_s,
            )
        )

    def poll(self, *, running: str) -> Work:
        """Ask what is to be done.

        Args:
            running: digest of the manifest that serves; empty: none.

        Raises:
            TrustError: the server does not know this device's credential.
            NetworkError: it cannot be reached, or answers nonsense.
        """
        found = self._ask("GET", self._base(), None, kind=Poll, headers={RUNNING_HEADER: running or "none"})
        cancel, order = "", None
        if "cancelAction" in found.links:
            cancel = _last_part(found.links["cancelAction"].href)
        elif "deploymentBase" in found.links:
            action = _last_part(found.links["deploymentBase"].href)
            try:
                order = self._order(action)
            except OverError:
                order = None
        wait = self._config.fleet.poll_s or _seconds(found.config.polling.sleep)
        return Work(order, cancel, wait, "configData" in found.links, CANARY_LINK in found.links)

    def describe(self, attributes: dict[str, str]) -> None:
        """Say what this device is."""
        self._ask("PUT", f"{self._base()}/configData", Attributes(attributes), kind=None)

    def report(self, action: Action) -> None:
        """Say how an action goes. The server takes the same outcome twice as once.

        Raises:
            NetworkError: it did not hear.
        """
        details = [
            f"phase={action.phase}",
            f"reason={action.reason}",
            f"attempt={action.attempt}",
            f"bytes_fetched={action.bytes_fetched}",
            f"bytes_reused={action.bytes_reused}",
        ]
        if action.detail:
            details.append(action.detail[:200])
        finished = {
            Phase.CONFIRMED: Finished.SUCCESS,
            Phase.ROLLED_BACK: Finished.FAILURE,
            Phase.FAILED: Finished.FAILURE,
        }.get(action.phase, Finished.NONE)
        status = Status(EXECUTION_OF[action.phase], Outcome(finished), details=tuple(details))
        self._feed("deploymentBase", action.id, status)

    def post(self, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        """Give the server something that is not of the update protocol; from any thread.

        Args:
            path: from the server's root, with `{device}` for this device's name.

        Raises:
            NetworkError: it cannot be reached, or the device is not enrolled yet.
        """
        credential = self._credential
        if credential is None or not credential.controller:
            raise NetworkError("this device is not enrolled yet")
        url = credential.url + path.format(device=quote(credential.device, safe=""))
        sent = {**self._pool.headers, **headers, "Authorization": f"TargetToken {credential.token}"}
        try:
            answer = self._pool.request("POST", url, body=body, headers=sent, preload_content=False)
            try:
                text = read_within(answer, url, limit=_LARGEST_ANSWER, deadline_s=_DEADLINE_S)
            finally:
                answer.release_conn()
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise NetworkError(f"{url}: {reason(error)}", hint="Is the server up, and its address right?") from error
        return Answer(answer.status, text, answer.headers.get("Retry-After", ""))

    def answer_cancel(self, action: str, *, dropped: bool) -> None:
        """Say whether an action that was withdrawn is dropped, or is too far."""
        status = (
            Status(Execution.CLOSED, Outcome(Finished.SUCCESS), details=("dropped",))
            if dropped
            else Status(Execution.REJECTED, Outcome(Finished.NONE), details=("past the switch",))
        )
        self._feed("cancelAction", action, status)

    def _feed(self, resource: str, action: str, status: Status) -> None:
        message = Feedback(status, id=action, timestamp=int(time.time() * 1000))
        self._ask("POST", f"{self._base()}/{resource}/{action}/feedback", message, kind=None)

    def _order(self, action: str) -> Order | None:
        found = self._ask("GET", f"{self._base()}/deploymentBase/{action}", None, kind=DeploymentBase)
        if found.deployment.maintenance_window == "unavailable" or found.deployment.update == "skip":
            return None
        for chunk in found.deployment.chunks:
            if chunk.part == MANIFEST_PART and chunk.artifacts:
                known = {entry.key: entry.value for entry in chunk.metadata}
                repository = self._config.repository.url or known.get(REPOSITORY_KEY, "")
                digest = "sha256:" + chunk.artifacts[0].hashes.sha256
                return Order(action, known.get(TARGET_KEY, ""), digest, repository)
        raise NetworkError(f"action {action}: the server names no release that this agent understands")

    def _base(self) -> str:
        if self._credential is None or not self._credential.controller:
            raise NetworkError("this device is not enrolled yet")
        found = self._credential.controller.rstrip("/")
        return found if "/controller/v1/" in found else f"{found}/{TENANT}/controller/v1/{self._credential.device}"

    def _save(self, credential: Credential) -> None:
        replace_file(self._disk, self._path, encode_json(credential))
        self._path.chmod(0o600)
        self._credential = credential

    def _ask(
        self,
        method: str,
        url: str,
        body: msgspec.Struct | None,
        *,
        kind: type[T] | None,
        headers: dict[str, str] | None = None,
    ) -> T:
        """One request; the answer as a record.

        Raises:
            OverError: 404, 409 or 410.
            TrustError: 401 or 403.
            NetworkError: anything else but success.
        """
        sent = {**self._pool.headers, **(headers or {})}
        if self._credential is not None and "Authorization" not in sent:
            sent["Authorization"] = f"TargetToken {self._credential.token}"
        data = None
        if body is not None:
            data, sent["Content-Type"] = msgspec.json.encode(body), "application/json"
        try:
            answer = self._pool.request(method, url, body=data, headers=sent, preload_content=False)
            try:
                text = read_within(answer, url, limit=_LARGEST_ANSWER, deadline_s=_DEADLINE_S)
            finally:
                answer.release_conn()
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise NetworkError(f"{url}: {reason(error)}", hint="Is the server up, and its address right?") from error
        if answer.status in (401, 403):
            raise TrustError(f"{url}: the server does not accept this device's token", hint="Enrol the device anew.")
        if answer.status in (404, 409, 410):
            said = text[:200].decode(errors="replace")
            raise OverError(f"{url}: the server answers {answer.status}: {said}", status=answer.status)
        if not 200 <= answer.status < 300:
            raise NetworkError(f"{url}: the server answers {answer.status}", hint="Try again later.")
        if kind is None:
            return None  # type: ignore[return-value]
        try:
            return msgspec.json.decode(text, type=kind)
        except msgspec.MsgspecError as error:
            raise NetworkError(f"{url}: the answer cannot be read: {error}") from error


def _enrol_token(path: str) -> str:
    if not path:
        raise ConfigError(
            "this device is not enrolled", hint="Set fleet.enrol_token_file to a file with a token of the server."
        )
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", hint="It holds the token that enrols this device.") from error


def _last_part(href: str) -> str:
    return href.split("?")[0].rstrip("/").rpartition("/")[2]


def _seconds(clock: str) -> float:
    """`HH:MM:SS` → seconds; a minute for what cannot be read."""
    found = re.fullmatch(r"(\d+):(\d\d):(\d\d)", clock)
    return max(1.0, 3600.0 * int(found[1]) + 60 * int(found[2]) + int(found[3])) if found else 60.0
