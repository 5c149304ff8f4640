"""A device of your own: write one TOML file and name it where a profile's name would stand.

python examples/04_custom_profile.py [FOLDER]

Every number has its unit in the key and says where it comes from: measured, datasheet or assumed. In the folder
`profiles` under `$EDGEGEN_HOME` (or the platform's folder for configuration, under `edgegen`) the file would be
found by its name alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tiny_checkpoint import make_checkpoint, make_data

import edgegen
from edgegen.common.codec import save_json
from edgegen.common.units import format_bytes

PROFILE = """\
schema = 1
name = "door-camera"
title = "Door camera, 256 MB"
targets = ["gguf"]

[device]
cpu = "dual Cortex-A7-class processor, 64 bits"
arch = "aarch64"
isa = "neon-inorder"
cores = 2
clock_ghz = { value = 1.0, source = "datasheet" }
ram_bytes = { value = 268_435_456, source = "datasheet" }
storage_bytes = { value = 64_000_000, source = "datasheet" }
bandwidth_bytes_per_s = { value = 1_500_000_000, source = "assumed", note = "DDR3 on 16 bits" }

[budgets]
max_bytes = 1_000_000
max_rss_bytes = 96_000_000
min_tokens_per_s = 5.0
max_kl = 0.5

[workload]
context_tokens = 128
prompt_tokens = 32
decode_tokens = 32
ubatch_tokens = 16
"""


def main(folder: str = "build-examples/custom-profile") -> int:
    """Write the profile, read it back and plan for it."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    path = place / "door-camera.toml"
    path.write_text(PROFILE, encoding="utf-8")
    profile = edgegen.load_profile(path)
    print(f"{profile.title}: {profile.device.cores} cores, {format_bytes(profile.device.ram_bytes.value)}")

    plan = edgegen.plan(
        str(make_checkpoint(place / "model")),
        profile=str(path),
        data=str(make_data(place / "data.jsonl")),
        grids=("q4_k", "q8_0"),
        vocab="keep",
        out=place / "out",
    )
    if isinstance(plan, edgegen.Infeasible):
        print(plan.message)
        return 1
    expected = plan.prediction
    print(
        f"plan: {format_bytes(expected.bytes)}, {format_bytes(expected.rss_bytes)} resident, "
        f"{expected.decode_tokens_per_s:.0f} tok/s; the binding budget is {plan.binding}"
    )
    save_json(place / "plan.json", plan)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
