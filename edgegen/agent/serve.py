"""Serves one release: `python -m edgegen.agent.serve REQUEST.json`, a process of its own under the agent.

The agent opens the socket and hands it down, so between two releases clients wait in its line instead of being refused.
A model that crashes or takes too much memory ends this process and not the agent. Where telemetry is on, its answers
are written to the spool that the agent sends from.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read once, when onnxruntime is imported

from edgegen.agent.child import end_with_parent
from edgegen.agent.telemetry.settings import Telemetry
from edgegen.common.codec import load_json
from edgegen.errors import EdgegenError
from edgegen.records.base import Record
from edgegen.records.plan import Settings

if TYPE_CHECKING:
    from edgegen.agent.engine import Engine
    from edgegen.agent.telemetry.reports import Reports


class Reporting(Record, frozen=True):
    """What becomes of answers."""

    config: Telemetry
    spool: str
    """Path."""
    quota_bytes: int


class Request(Record, frozen=True):
    """What to serve."""

    folder: str
    """Of the artifact."""
    release: str
    """Digest of its manifest."""
    model: str
    """Name under which it answers."""
    created: int
    runtime: str
    settings: Settings
    tokens: tuple[str, ...]
    max_waiting: int
    max_tokens: int
    socket: int
    """Handle of the listening socket."""
    adapter: str = ""
    """LoRA file over the artifact's weights; empty: none."""
    own: str = ""
    """Token of the agent's own requests."""
    reporting: Reporting | None = None
    """None: nothing is reported."""


def main(path: str) -> int:
    """Serve until told to stop; the exit code of an error if the model cannot be opened."""
    end_with_parent()
    request = load_json(Path(path), Request)
    import uvicorn

    from edgegen.agent.api import Api
    from edgegen.agent.engine import Engine

    try:
        engine = Engine(
            Path(request.folder),
            adapter=Path(request.adapter) if request.adapter else None,
            settings=request.settings,
            runtime=request.runtime,
            max_waiting=request.max_waiting,
            likelihood_fraction=request.reporting.config.likelihood_fraction if request.reporting else 0.0,
        )
    except EdgegenError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    with contextlib.ExitStack() as open_things:
        reports = _reports(request, engine)
        if reports is not None:
            open_things.callback(reports.close)
            engine.watch = reports.recorder.answered
        open_things.enter_context(engine)  # closed first: its last answer is reported too
        api = Api(
            engine,
            model=request.model,
            release=request.release,
            created=request.created,
            tokens=request.tokens,
            max_tokens=request.max_tokens,
            own=request.own,
            opinions=reports,
        )
        settings = uvicorn.Config(
            api.app,
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=5,
            limit_concurrency=64 + request.max_waiting,
            server_header=False,
        )
        uvicorn.Server(settings).run(sockets=[socket.socket(fileno=request.socket)])
    return 0


def _reports(request: Request, engine: Engine) -> Reports | None:
    """The reporting half, if it is on."""
    if request.reporting is None:
        return None
    from edgegen.agent.telemetry.recorder import Served
    from edgegen.agent.telemetry.reports import Reports

    asked = request.reporting
    served = Served(request.release, f"{engine.runtime} {engine.version}", request.settings.threads, engine.text)
    return Reports(asked.config, served, Path(asked.spool), asked.quota_bytes)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
