"""Verify: measure a finished output again, as a device would, and read its report.

python examples/03_verify.py [FOLDER]

Verifying needs no torch: what the original said is stored beside the artifact. An altered file fails, which is a
report with `passed` false and not an exception.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tiny_checkpoint import make_checkpoint, make_data

import edgegen
from edgegen.records.report import Report


def main(folder: str = "build-examples/verify") -> int:
    """Verify a fresh output, then the same with one byte changed."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    made = edgegen.compress(
        str(make_checkpoint(place / "model")),
        profile="raspberry-pi-zero-2-w",
        data=str(make_data(place / "data.jsonl")),
        grids=("q8_0",),
        max_bytes=2_000_000,
        vocab="keep",
        out=place / "out",
    )
    report = edgegen.verify(made.out).report
    show("as made", report)

    content = bytearray(made.model_file.read_bytes())
    content[-1] ^= 1
    made.model_file.write_bytes(content)
    altered = edgegen.verify(made.out).report
    show("one bit changed", altered)
    return 0 if report.passed and not altered.passed else 1


def show(title: str, report: Report) -> None:
    """Print what a report found, as far as it could be measured."""
    print(f"{title}: {'passed' if report.passed else 'failed'}")
    if report.quality and report.parity:
        kl = report.quality.kl
        print(f"  KL to the original {kl.value:.2g} [{kl.low:.2g}, {kl.high:.2g}] nats per token")
        print(f"  KL to the same weights in torch {report.parity.kl:.2g}")
    for check in report.checks:
        if not check.passed:
            print(f"  ✗ {check.name}: {check.detail}")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
