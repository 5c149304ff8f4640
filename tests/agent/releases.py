"""Real releases of tiny models: packed, signed, and a device's configuration to install them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgegen.bundle.ledger import create_keys
from edgegen.bundle.pack import write_bundle
from edgegen.bundle.segments import describe_folder
from edgegen.bundle.sign import sign_bundle
from edgegen.records.bundle import Bundle, Compat, Golden, Health, Manifest
from edgegen.runtime.registry import runtime_for
from edgegen.runtime.text import Text

ROOT = Path(__file__).resolve().parents[2]
_RUNTIMES = {"gguf": ("llama.cpp",), "onnx": ("onnxruntime-genai", "onnxruntime"), "litert": ("litert",)}


def make_keys(folder: Path) -> Path:
    """Keys of every role."""
    create_keys(folder, root_keys=1, root_threshold=1)
    return folder


def pack(artifact: Path, out: Path, keys: Path, version: str, *, epoch: int = 1, **changes: Any) -> Bundle:
    """A signed bundle of an artifact with two golden prompts."""
    text = Text(artifact)
    record = text.artifact
    golden = []
    with runtime_for(record.target).open(artifact / record.model, record.settings) as session:
        for words in ("the cat", "a blue door"):
            ids = text.encode(words)
            tokens = list(session.generate(ids, max_tokens=8))
            logits = session.score([*ids, *tokens])[len(ids) - 1 : -1].astype(np.float64)
            logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            mean = float(logs[np.arange(len(tokens)), tokens].mean())
            golden.append(Golden(tuple(ids), tuple(tokens), mean))
    files, _ = describe_folder(artifact, sorted(path.name for path in artifact.iterdir() if path.is_file()))
    manifest = Manifest(
        schema=1,
        name="toy",
        version=version,
        created=f"2026-01-{len(version) + int(version.replace('.', '')) % 20:02d}T00:00:00+00:00",
        epoch=epoch,
        kind="full",
        target=record.target,
        entry=record.model,
        settings=record.settings,
        files=files,
        compat=Compat(arch=(), runtimes=_RUNTIMES[record.target]),
        install_bytes=sum(file.bytes for file in files),
        health=Health(probation_s=0.5, load_timeout_s=30),
        golden=tuple(golden),
    )
    manifest = msgspec.structs.replace(manifest, **changes)
    write_bundle(out, manifest, {file.path: artifact / file.path for file in files})
    return sign_bundle(out, keys)


def configure(folder: Path, keys: Path, *lines: str) -> Path:
    """An `agent.toml` with a free port."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "agent.toml"
    words = ["schema = 1", 'home = "home"', 'device = "kitchen-1"', "[serve]", "port = 0", "[repository]"]
    words += [f"root = {json.dumps(str(keys / 'root.json'))}", "[limits]", "disk_floor_bytes = 0", *lines]
    path.write_text("\n".join(words) + "\n")
    return path


def agent(
    config: Path, *words: object, code: int | None = 0, timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run a command of the agent to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "edgegen.agent.main", "--config", str(config), *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )
    assert code is None or done.returncode == code, f"{done.returncode}: {done.stdout}{done.stderr}"
    return done


def install(config: Path, bundle: Path, *, code: int | None = 0) -> dict[str, Any]:
    """Install a bundle; what the agent says of it."""
    target = json.loads((bundle / "bundle.json").read_bytes())["target"]
    done = agent(config, "install", "--json", "--repository", bundle, "--target", target, code=code)
    return dict(json.loads(done.stdout)) if done.stdout else {"error": done.stderr}


@contextmanager
def running(config: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The agent as a service."""
    process = subprocess.Popen(
        [sys.executable, "-m", "edgegen.agent.main", "--config", str(config)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=30)
