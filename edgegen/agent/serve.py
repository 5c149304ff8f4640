"""Serves one release: `python -m edgegen.agent.serve REQUEST.json`, a process of its own under the agent.

The agent opens the socket and hands it down, so between two releases clients wait in its line instead of being refused.
A model that crashes or takes too much memory ends this process and not the agent.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read once, when onnxruntime is imported

from edgegen.agent.child import end_with_parent
from edgegen.common.codec import load_json
from edgegen.errors import EdgegenError
from edgegen.records.base import Record
from edgegen.records.plan import Settings


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
        )
    except EdgegenError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    with engine:
        api = Api(
            engine,
            model=request.model,
            release=request.release,
            created=request.created,
            tokens=request.tokens,
            max_tokens=request.max_tokens,
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


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
