"""Compress: the whole chain in one call, from a checkpoint to an artifact with its receipt.

python examples/02_compress.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

from tiny_checkpoint import make_checkpoint, make_data

import edgegen
from edgegen.common.units import format_bytes


def main(folder: str = "build-examples/compress") -> int:
    """Plan, round, export and verify; exit code 0 if the artifact keeps every limit."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    result = edgegen.compress(
        str(make_checkpoint(place / "model")),
        profile="raspberry-pi-zero-2-w",
        data=str(make_data(place / "data.jsonl")),
        grids=("q4_k", "q8_0"),
        max_bytes=1_000_000,
        vocab="keep",
        out=place / "out",
    )
    print(f"model     {result.model_file} ({format_bytes(result.report.artifact_bytes)})")
    print(f"receipt   {result.out / 'report.html'}")
    for check in result.report.checks:
        print(f"  {'✓' if check.passed else '✗'} {check.name}")
    return 0 if result.passed else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
