"""Keeps the serving process running, and judges it during probation.

The socket is opened once and handed down, so clients wait in its line while one release replaces another. A process
that ends by itself is started again, later each time, and so is one that says that its model cannot go on, or says
nothing for long. Whether what runs is good enough is judged only during probation.
"""

from __future__ import annotations

import contextlib
import datetime
import http.client
import json
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgegen.agent.config import Serve
from edgegen.agent.home import Home, read_manifest
from edgegen.agent.runtimes import chosen_runtime
from edgegen.agent.selftest import fitting_settings
from edgegen.agent.serve import Request
from edgegen.agent.update import Verdict
from edgegen.common.codec import save_json
from edgegen.errors import ConfigError, DeviceError
from edgegen.records.bundle import Manifest
from edgegen.records.deployment import Reason

_LOOK_S = 0.2
_STOP_S = 10.0
_ASK_S = 5.0
"""Between looks at the health of a process that runs."""
_SILENT_S = 60.0
"""A process that has not answered for so long, or so long after the time to load, hangs."""
_SETTLED_S = 600.0
"""A process that ran for so long is started again at once when it ends: its restarts are counted anew."""
_PROGRAM = ("-m", "edgegen.agent.serve")
_CANARY_S = 300.0
"""Longest wait for one golden answer, during which nobody is asked whether the release is still wanted."""
_JUDGED_TOKENS = 16
"""Answered tokens from which on speed is judged."""
_JUDGED_REQUESTS = 10
"""Requests from which on their failures are judged as a fraction; fewer may fail once."""


class Supervisor:
    """The `Serving` of a real device. Close it."""

    def __init__(self, home: Home, config: Serve, *, say: Callable[[str], None] = lambda _: None) -> None:
        """Open the socket; nothing is served yet.

        Args:
            say: told of each process that has to be started again.

        Raises:
            DeviceError: the address is taken.
            ConfigError: no such address, or the tokens cannot be read.
        """
        self._home, self._config, self._say = home, config, say
        self._tokens = _tokens(config.token_file)
        self._secret = secrets.token_urlsafe(24)
        self._socket = _listen(config.host, config.port)
        self.port = int(self._socket.getsockname()[1])
        self._scratch = tempfile.TemporaryDirectory(prefix="edgegen-serve-")
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._started_s = 0.0
        self._again_s = 0.0
        self._fails = self._stillborn = 0
        self._answered_s: float | None = None
        self._load_s = 0.0
        self._judging = False
        self.digest = ""
        """Of the release that is served."""
        self.restarts = 0
        """Times that the process ended by itself since `start`."""
        self.last_words = ""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch_process, name="supervisor", daemon=True)
        self._thread.start()

    def start(self, digest: str) -> None:
        """See `Serving`."""
        with self._lock:
            if self.digest == digest and self._process is not None and self._process.poll() is None:
                return
            self.stop()
            self.digest, self.restarts, self._again_s = digest, 0, 0.0
            self._fails = self._stillborn = 0
            self._spawn()

    @property
    def failing(self) -> bool:
        """Whether the process ended several times one after another without having come up."""
        return self._stillborn >= 2

    def stop(self) -> None:
        """See `Serving`."""
        with self._lock:
            self.digest = ""
            process, self._process = self._process, None
            if process is None:
                return
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdin is not None:
                process.stdin.close()

    def watch(self, manifest: Manifest, between: Callable[[], None]) -> Verdict:
        """See `Serving`."""
        self._judging = True
        try:
            return self._judge(manifest, between)
        finally:
            self._judging = False

    def _judge(self, manifest: Manifest, between: Callable[[], None]) -> Verdict:
        health, begun = manifest.health, time.monotonic()
        healthy_since: float | None = None
        while True:
            between()
            if self.restarts > health.max_restarts:
                return Verdict(Reason.CRASHED, f"the process ended {self.restarts} times: {self.last_words}")
            seen = self.health()
            if seen is None:
                waited = time.monotonic() - (begun if healthy_since is None else self._started_s)
                if waited > health.load_timeout_s + 5:
                    return Verdict(Reason.LOAD_FAILED, f"no answer after {waited:.0f} s: {self.last_words}")
            elif seen.get("release") == self.digest:
                verdict = judge_health(seen, manifest)
                if verdict.reason is not Reason.NONE:
                    return verdict
                if healthy_since is None:
                    healthy_since = time.monotonic()
                    verdict = self._canaries(manifest)
                    if verdict.reason is not Reason.NONE:
                        return verdict
                if time.monotonic() - healthy_since >= health.probation_s:
                    return Verdict(Reason.NONE)
            time.sleep(_LOOK_S)

    def health(self) -> dict[str, Any] | None:
        """What the serving process says of itself; None: nothing."""
        found = self._ask("GET", "/healthz", None, timeout_s=2.0)
        return found[1] if found else None

    def close(self) -> None:
        """Serve no more and free the address."""
        self._closing.set()
        self._thread.join()
        self.stop()
        self._socket.close()
        self._scratch.cleanup()

    def _canaries(self, manifest: Manifest) -> Verdict:
        """The golden prompts through the API, as clients will use it."""
        for number, golden in enumerate(manifest.golden, start=1):
            body = {"prompt": list(golden.ids), "max_tokens": len(golden.tokens), "temperature": 0}
            answer = self._ask(
                "POST", "/v1/completions", body, timeout_s=min(_CANARY_S, manifest.health.load_timeout_s)
            )
            if answer is None:
                continue  # the process ended or does not answer: the watch counts that
            if answer[0] not in (200, 429):
                return Verdict(Reason.ERRORS, f"golden prompt {number} through the API: {json.dumps(answer[1])[:200]}")
        return Verdict(Reason.NONE)

    def _ask(self, method: str, path: str, body: Any, *, timeout_s: float) -> tuple[int, dict[str, Any]] | None:
        """The answer's status and its JSON object; None: no answer that can be read."""
        found = self._exchange(method, path, body, timeout_s=timeout_s)
        decoded = _decoded(found[1]) if found else {}
        return (found[0], decoded) if found and decoded else None

    def _exchange(self, method: str, path: str, body: Any, *, timeout_s: float) -> tuple[int, bytes] | None:
        connection = http.client.HTTPConnection(_reachable(self._config.host), self.port, timeout=timeout_s)
        try:
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, path, data, {"Authorization": f"Bearer {self._secret}"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def _watch_process(self) -> None:
        """Start the process again when it ended by itself, or has to be ended."""
        asked_s = 0.0
        while not self._closing.wait(_LOOK_S):
            process, killed = self._process, ""
            if process is not None and process.poll() is None:
                if not self._judging and time.monotonic() - asked_s >= _ASK_S:
                    asked_s = time.monotonic()
                    killed = self._complaint()
                if not killed:
                    continue
            with self._lock:
                if process is None or process is not self._process or not self.digest:
                    continue
                if killed and not self._judging:
                    process.kill()
                    process.wait()
                self._start_again(process, killed)

    def _complaint(self) -> str:
        """Why the process that runs must be ended; empty: it may go on."""
        found = self._exchange("GET", "/healthz", None, timeout_s=_ASK_S)
        now = time.monotonic()
        if found is not None:
            self._answered_s = now
            # A process with too many clients answers 503 as well, and says nothing of its model.
            return "its model cannot go on" if _decoded(found[1]).get("status") == "failed" else ""
        until = self._answered_s + _SILENT_S if self._answered_s else self._started_s + self._load_s + _SILENT_S
        return f"no answer for {now - (self._answered_s or self._started_s):.0f} s" if now > until else ""

    def _start_again(self, process: subprocess.Popen[bytes], killed: str) -> None:
        """A process that ended is followed by another, after a pause that grows. The lock is held."""
        if process.poll() is None:
            return
        now = time.monotonic()
        if self._again_s == 0.0:
            self._stillborn = self._stillborn + 1 if self._answered_s is None else 0
            self._answered_s = None
            self._fails = 1 if now - self._started_s > _SETTLED_S else self._fails + 1
            self.restarts += 1
            self.last_words = killed or f"exit code {process.returncode}" + _last_line(self._log)
            pause_s = min(60.0, 0.5 * 2.0 ** min(self._fails, 7))
            self._again_s = now + pause_s
            self._say(f"{self.digest}: {self.last_words}; it is started again in {pause_s:g} s")
        if now >= self._again_s:
            self._again_s = 0.0
            with contextlib.suppress(DeviceError):
                self._spawn()

    @property
    def _log(self) -> Path:
        return Path(self._scratch.name) / "stderr"

    def _spawn(self) -> None:
        folder = self._home.release(self.digest)
        manifest = read_manifest(folder)
        if manifest is None:
            raise DeviceError(f"{folder}: its manifest cannot be read", hint="Check the disk.")
        request = Request(
            folder=str((folder / manifest.entry).parent),
            adapter=str(folder / manifest.adapter) if manifest.adapter else "",
            settings=fitting_settings(manifest.settings, self._config.threads),
            release=self.digest,
            model=f"{manifest.name}-{manifest.version}",
            created=_unix(manifest.created),
            runtime=chosen_runtime(manifest, self._config.runtime),
            tokens=(*self._tokens, self._secret) if self._tokens else (),
            max_waiting=self._config.max_waiting,
            max_tokens=self._config.max_tokens,
            socket=self._socket.fileno(),
        )
        path = Path(self._scratch.name) / "request.json"
        save_json(path, request)
        path.chmod(0o600)
        command = [sys.executable, *_PROGRAM, str(path)]
        with self._log.open("wb") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stderr=errors, pass_fds=[self._socket.fileno()]
            )
        self._started_s, self._answered_s = time.monotonic(), None
        self._load_s = manifest.health.load_timeout_s


def judge_health(seen: dict[str, Any], manifest: Manifest) -> Verdict:
    """Whether what the serving process says of itself is good enough."""
    health = manifest.health
    requests, errors = int(seen.get("requests", 0)), int(seen.get("errors", 0))
    if seen.get("status") != "ok":
        return Verdict(Reason.ERRORS, "the model cannot go on")
    used = int(seen.get("peak_rss_bytes", 0))
    if health.max_rss_bytes is not None and used > health.max_rss_bytes:
        return Verdict(Reason.TOO_MUCH_MEMORY, f"{used:,} bytes of {health.max_rss_bytes:,}")
    if errors > max(1, health.max_error_fraction * max(requests, _JUDGED_REQUESTS)):
        return Verdict(Reason.ERRORS, f"{errors} of {requests} requests failed")
    speed = seen.get("tokens_per_s")
    judged = int(seen.get("answer_tokens", 0)) >= _JUDGED_TOKENS
    if health.min_tokens_per_s is not None and speed is not None and judged and speed < health.min_tokens_per_s:
        return Verdict(Reason.TOO_SLOW, f"{speed:.1f} tokens/s of {health.min_tokens_per_s:g}")
    return Verdict(Reason.NONE)


def _decoded(data: bytes) -> dict[str, Any]:
    """A JSON object; empty for anything else."""
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _tokens(path: str) -> tuple[str, ...]:
    """Tokens of a file, one a line.

    Raises:
        ConfigError: it cannot be read, or holds none.
    """
    if not path:
        return ()
    try:
        found = tuple(line.strip() for line in Path(path).read_text().splitlines() if line.strip())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    if not found:
        raise ConfigError(f"{path}: no token in it", hint="Write one a line, such as from `openssl rand -hex 24`.")
    return found


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket. A process of an agent that was just killed may hold the address for a moment."""
    until = time.monotonic() + _STOP_S
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        try:
            return socket.create_server((host, port), family=family, backlog=128)
        except socket.gaierror as error:
            raise ConfigError(f"serve.host: {host}: {error.strerror}") from error
        except OSError as error:
            if time.monotonic() > until:
                raise DeviceError(
                    f"{host}:{port}: {error.strerror}", hint="Does another program use this port? Set serve.port."
                ) from error
            time.sleep(0.5)


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return f": {lines[-1][:200]}" if lines else ""


def _unix(text: str) -> int:
    try:
        return int(datetime.datetime.fromisoformat(text).timestamp())
    except ValueError:
        return 0
