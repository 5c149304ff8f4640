"""A tiny artifact behind the real server process."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from edgegen.agent.serve import Reporting, Request
from edgegen.common.codec import save_json
from edgegen.runtime.text import Text
from tests.tiny_models import export_tiny, make_tiny

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_artifact(folder: Path, **changes: object) -> Path:
    """A random Llama as GGUF, with a chat template."""
    hf = make_tiny("llama", folder / "hf", tied=True, chat_template=TEMPLATE, **changes)  # type: ignore[arg-type]
    export_tiny(hf, folder, "f16", context_tokens=256)
    return folder / "artifact"


@contextlib.contextmanager
def serving(
    artifact: Path,
    folder: Path,
    *,
    tokens: tuple[str, ...] = (),
    max_waiting: int = 4,
    own: str = "",
    reporting: Reporting | None = None,
) -> Iterator[str]:
    """The root URL of a running server."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        request = Request(
            folder=str(artifact),
            release="sha256:" + "0" * 64,
            model="toy-1.0.0",
            created=1_700_000_000,
            runtime="",
            settings=Text(artifact).artifact.settings,
            tokens=tokens,
            max_waiting=max_waiting,
            max_tokens=16,
            socket=listening.fileno(),
            own=own,
            reporting=reporting,
        )
        save_json(folder / "request.json", request)
        process = subprocess.Popen(
            [sys.executable, "-m", "edgegen.agent.serve", str(folder / "request.json")],
            pass_fds=[listening.fileno()],
            stdin=subprocess.PIPE,
            env=dict(os.environ),
        )
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        try:
            wait_until_healthy(url)
            yield url
        finally:
            process.terminate()
            process.wait(timeout=20)


def wait_until_healthy(url: str, timeout_s: float = 60) -> dict[str, object]:
    """What /healthz says, as soon as it says anything."""
    until = time.monotonic() + timeout_s
    while True:
        try:
            with urllib.request.urlopen(url + "/healthz", timeout=timeout_s) as answer:
                return dict(json.load(answer))
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
