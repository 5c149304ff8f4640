"""Serve one folder of static files on this machine's loopback, with Range, for as long as a block runs."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from edgegen.errors import ConfigError, NetworkError

_START_S = 10.0


@contextlib.contextmanager
def lending(folder: Path) -> Iterator[int]:
    """The port that `folder` is served on.

    Raises:
        ConfigError: no such folder.
        NetworkError: no port can be opened.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder")
    import uvicorn
    from starlette.applications import Starlette
    from starlette.routing import Mount
    from starlette.staticfiles import StaticFiles

    app = Starlette(routes=[Mount("/", StaticFiles(directory=folder))])
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", server_header=False))
    thread = threading.Thread(target=server.run, args=([listener],), name="lend", daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + _START_S
        while not server.started:
            if not thread.is_alive() or time.monotonic() > deadline:
                raise NetworkError(f"{folder} could not be served on 127.0.0.1")
            time.sleep(0.01)
        yield int(listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(_START_S)
        listener.close()
