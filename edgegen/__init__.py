"""edgegen: pick a device, give a model and your data, get artifacts that fit the device, proven on its own runtime.

    import edgegen

    result = edgegen.compress("./my-model", profile="raspberry-pi-4-4gb", data="my.jsonl", out="build")
    print(result.passed, result.model_file)

Public names are resolved on first use, so importing edgegen imports nothing heavy.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

# torch's and llama.cpp's threads wait for each other many times a token. Spinning until the other comes, OpenMP's
# default, costs five times the processor time as soon as anything else runs on the machine; sleeping at once makes
# small models decode six times slower. A short spin, then sleep, has neither cost. Read when either library loads.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_PUBLIC = {
    "build_data": "edgegen.sdk.data",
    "list_models": "edgegen.sdk.registry",
    "load_chain": "edgegen.sdk.chain",
    "run_chain": "edgegen.sdk.chain",
    "finetune": "edgegen.sdk.tuning",
    "distill": "edgegen.sdk.tuning",
    "distill_few": "edgegen.sdk.tuning",
    "evaluate": "edgegen.sdk.judging",
    "explain": "edgegen.sdk.explaining",
    "try_prompts": "edgegen.sdk.prompting",
    "use_prompt": "edgegen.sdk.prompting",
    "compress": "edgegen.sdk.pipeline",
    "plan": "edgegen.sdk.pipeline",
    "bake_off": "edgegen.sdk.bakeoff",
    "verify": "edgegen.sdk.output",
    "bench": "edgegen.sdk.bench",
    "Chat": "edgegen.sdk.chat",
    "learn": "edgegen.sdk.learning",
    "restore_vocabulary": "edgegen.sdk.learning",
    "read_result": "edgegen.sdk.output",
    "Result": "edgegen.sdk.output",
    "pack_bundle": "edgegen.sdk.release",
    "deploy_bundle": "edgegen.sdk.deploying",
    "push_bundle": "edgegen.sdk.deploying",
    "require_bundle_gates": "edgegen.sdk.deploying",
    "monitor_fleet": "edgegen.sdk.monitoring",
    "monitor_device": "edgegen.sdk.monitoring",
    "monitor_outputs": "edgegen.sdk.monitoring",
    "monitor_events": "edgegen.sdk.monitoring",
    "monitor_drift": "edgegen.sdk.monitoring",
    "monitor_compare": "edgegen.sdk.monitoring",
    "monitor_bundles": "edgegen.sdk.monitoring",
    "hard_prompts": "edgegen.sdk.monitoring",
    "pull_hard_prompts": "edgegen.sdk.monitoring",
    "stages": "edgegen.sdk",
    "list_profiles": "edgegen.catalog",
    "load_profile": "edgegen.catalog",
    "load_target": "edgegen.catalog",
    "Profile": "edgegen.records.profile",
    "Budgets": "edgegen.records.profile",
    "Plan": "edgegen.records.plan",
    "Infeasible": "edgegen.records.plan",
    "Report": "edgegen.records.report",
    "BakeOff": "edgegen.records.bakeoff",
    "Artifact": "edgegen.records.artifact",
    "EdgegenError": "edgegen.errors",
    "ConfigError": "edgegen.errors",
    "UnsupportedError": "edgegen.errors",
    "InfeasibleError": "edgegen.errors",
    "DeviceError": "edgegen.errors",
    "TrustError": "edgegen.errors",
    "NetworkError": "edgegen.errors",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'edgegen' has no attribute {name!r}")
    module = importlib.import_module(_PUBLIC[name])
    return importlib.import_module(f"{_PUBLIC[name]}.{name}") if name == "stages" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Keeps `edgegen.compress`, `edgegen.evaluate` and `edgegen.verify` functions, whatever was imported.

    Three packages have the names of public functions. Importing one, as its function itself does, would put the package
    in the function's place, and the next call would fail.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _PUBLIC and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
