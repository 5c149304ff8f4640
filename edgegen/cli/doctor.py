"""`edgegen doctor`: what is installed, what each missing extra would give, and whether this machine has room."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from edgegen.cli import options
from edgegen.cli.render import write_json
from edgegen.common.units import format_bytes

EXTRAS: dict[str, tuple[str, dict[str, str]]] = {
    "gguf": ("run and write GGUF files (llama.cpp)", {"llama_cpp": "llama-cpp-python", "gguf": "gguf"}),
    "compress": (
        "load checkpoints, measure, plan, compress, draw receipts",
        {
            "torch": "torch",
            "transformers": "transformers",
            "optimum": "optimum",
            "datasets": "datasets",
            "safetensors": "safetensors",
            "scipy": "scipy",
            "matplotlib": "matplotlib",
            "peft": "peft",
            "accelerate": "accelerate",
            "onnx": "onnx",
            "onnx_ir": "onnx-ir",
            "onnxscript": "onnxscript",
        },
    ),
    "onnx": (
        "run ONNX folders; with compress, write them too",
        {"onnxruntime": "onnxruntime", "onnxruntime_genai": "onnxruntime-genai"},
    ),
    "litert": ("run LiteRT artifacts; writing them takes litert-convert", {"ai_edge_litert": "ai-edge-litert"}),
    "litert-lm": ("verify .litertlm files in LiteRT-LM", {"litert_lm": "litert-lm-api"}),
    "evaluate": (
        "judge models: attributions, the usual benchmarks, likeness of texts",
        {"captum": "captum", "lm_eval": "lm-eval", "sacrebleu": "sacrebleu"},
    ),
    "monitor": ("watch a fleet and compressions in the terminal", {"textual": "textual"}),
    "sign": ("sign releases, and renew a repository's timestamp", {"cryptography": "cryptography"}),
    "parquet": ("export a fleet's telemetry as Parquet", {"pyarrow": "pyarrow"}),
    "mqtt": ("take telemetry in through an MQTT broker", {"paho": "paho-mqtt"}),
    "otlp": (
        "pass telemetry on to an OpenTelemetry collector",
        {"opentelemetry": "opentelemetry-exporter-otlp-proto-http"},
    ),
    "postgres": ("a fleet's store on PostgreSQL", {"psycopg": "psycopg"}),
}
"""Extra → (what it gives, {module: distribution})."""


def missing_extras(module: str) -> list[str]:
    """What to install for a module that was not found: its extra, and for compressing the runtime's too if that is
    missing, so that one message is enough. Empty if no extra brings it.
    """
    extra = next((extra for extra, (_, modules) in EXTRAS.items() if module in modules), "")
    if extra == "compress" and importlib.util.find_spec("llama_cpp") is None:
        return ["gguf", extra]
    return [extra] if extra else []


def doctor(json: options.Json = False) -> None:
    """Show what is installed and what is missing. Always exits 0: nothing is wrong with a small install."""
    found = examine()
    if json:
        write_json(found)
        return
    lines = [f"edgegen {found['edgegen']} on Python {found['python']}"]
    for name, extra in found["extras"].items():
        mark = "✓" if not extra["missing"] else "·"
        lines.append(f"{mark} {name:<9} {extra['gives']}")
        if extra["missing"]:
            lines.append(f"            missing {', '.join(extra['missing'])}: pip install 'edgegen[{name}]'")
    emulation = found["emulation"]
    lines.append(
        f"✓ emulation {format_bytes(emulation['bytes'])}: {', '.join(emulation['packages'])}"
        if emulation
        else "· emulation run artifacts on a device's own processor core: edgegen emulate setup"
    )
    lines.append(f"memory    {format_bytes(found['free_ram_bytes'])} free of {format_bytes(found['ram_bytes'])}")
    lines.append(f"disk      {format_bytes(found['free_disk_bytes'])} free here")
    lines.append("A model of N parameters needs about 5 N bytes of memory to compress (2.5 N above 1.5 billion).")
    sys.stdout.write("\n".join(lines) + "\n")


def examine() -> dict[str, Any]:
    """The same as plain values."""
    import msgspec
    import psutil

    from edgegen.emulate import read_setup

    memory = psutil.virtual_memory()
    extras = {}
    for name, (gives, modules) in EXTRAS.items():
        missing = [dist for module, dist in modules.items() if importlib.util.find_spec(module) is None]
        versions = {dist: _version(dist) for module, dist in modules.items() if dist not in missing}
        extras[name] = {"gives": gives, "missing": missing, "versions": versions}
    return {
        "edgegen": metadata.version("edgegen"),
        "python": sys.version.split()[0],
        "extras": extras,
        "emulation": msgspec.to_builtins(read_setup()),
        "ram_bytes": memory.total,
        "free_ram_bytes": memory.available,
        "free_disk_bytes": shutil.disk_usage(Path.cwd()).free,
    }


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
