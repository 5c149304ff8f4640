"""Sites, releases and servers for the fleet's tests."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from edgegen.fleet.database import Database
from edgegen.fleet.operations import operation
from edgegen.records.bundle import BundleFile, Compat, Manifest
from edgegen.records.plan import Settings

ROOT = Path(__file__).resolve().parents[2]


def manifest_bytes(version: str, **changes: Any) -> bytes:
    """A small manifest of one file."""
    manifest = Manifest(
        schema=1,
        name="kitchen",
        version=version,
        created="2026-01-01T00:00:00Z",
        epoch=1,
        kind="full",
        target="gguf",
        entry="model.gguf",
        settings=Settings(context_tokens=64, ubatch_tokens=16, threads=1, kv_type="f16"),
        files=(BundleFile("model.gguf", 11, "sha256:" + "ab" * 32),),
        compat=Compat(arch=(), runtimes=("llamacpp",)),
        install_bytes=11,
    )
    return msgspec.json.encode(msgspec.structs.replace(manifest, **changes))


class Desk:
    """A fleet's database with a clock that a test moves."""

    def __init__(self, store: str, now_s: float = 1_000_000.0) -> None:
        self.database = Database(store)
        self.now_s = now_s
        self.site: Path | None = None

    def do(self, name: str, /, **asked: Any) -> Any:
        """An operation by name with its arguments."""
        found = operation(name)
        return self.run(lambda tx: found.carry_out(tx, self.now_s, "operator:test", found.asks(**asked), self.site))

    def run(self, job: Any) -> Any:
        with self.database.transaction() as tx:
            return job(tx)

    def publish(self, version: str) -> str:
        return str(self.do("publish", manifest=manifest_bytes(version).decode(), target=target_of(version)))


def target_of(version: str) -> str:
    return f"bundles/kitchen/{version}/manifest.json"


@contextlib.contextmanager
def serving(site: Path, *words: str, port: int = 0) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The real server in its own process; its URL and the process."""
    process = subprocess.Popen(
        [*(sys.executable, "-m", "edgegen", "fleet", "serve", str(site), "--port", str(port)), *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert " at http" in line, line + process.stderr.read()
        url = line.split(" at ")[1].strip()
        _wait_for(url)
        yield url, process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


def post(url: str, token: str, operation_name: str, asked: Any) -> Any:
    """An operator's request."""
    request = urllib.request.Request(
        f"{url}/v1/{operation_name}",
        data=json.dumps(asked).encode(),
        headers={"Authorization": f"Bearer {token}"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.loads(answer.read())


def _wait_for(url: str) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/healthz", timeout=20):
            return
        time.sleep(0.05)
    raise AssertionError(f"{url} does not answer")
