"""A finished output folder: read it, verify it again. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from edgegen.catalog import is_this_machine, load_target
from edgegen.common.codec import load_json, save_json
from edgegen.errors import ConfigError
from edgegen.receipt import write_receipt
from edgegen.records.artifact import Artifact
from edgegen.records.plan import Plan
from edgegen.records.report import Report
from edgegen.verify.verify import verify_artifact

Notify = Callable[[str, str, int, int], None]
"""Called with (stage, state, done, total); state is `started`, `running`, `finished` or `skipped`."""


class Result(msgspec.Struct, frozen=True):
    """What a run made."""

    out: Path
    plan: Plan
    artifact: Artifact
    report: Report

    @property
    def passed(self) -> bool:
        """Whether the artifact keeps every limit of its plan."""
        return self.report.passed

    @property
    def model_file(self) -> Path:
        """The file that the runtime opens."""
        return self.out / "artifact" / self.artifact.model


def measure_output(folder: Path, *, command: str, progress: Callable[[int, int], None] | None = None) -> Report:
    """Measure the artifact in a folder on its runtime; writes report.json and report.html there."""
    plan = load_json(folder / "plan.json", Plan)
    report = verify_artifact(
        folder / "artifact",
        folder / "reference",
        plan,
        load_target(plan.target),
        is_device=is_this_machine(plan.profile),
        command=command,
        progress=progress,
    )
    save_json(folder / "report.json", report)
    write_receipt(folder / "report.html", report, plan)
    return report


def verify(out: str | Path, *, command: str = "", notify: Notify | None = None) -> Result:
    """Verify a finished output again, on this machine.

    Raises:
        ConfigError: no finished output there.
    """
    folder = Path(out)
    require_output(folder)
    tell = notify or (lambda *event: None)
    tell("verify", "started", 0, 1)
    measure_output(folder, command=command, progress=lambda done, total: tell("verify", "running", done, total))
    tell("verify", "finished", 1, 1)
    return read_result(folder)


def read_result(out: Path) -> Result:
    """A finished output's records.

    Raises:
        ConfigError: no finished output there.
    """
    require_output(out)
    return Result(
        out=out,
        plan=load_json(out / "plan.json", Plan),
        artifact=load_json(out / "artifact" / "artifact.json", Artifact),
        report=load_json(out / "report.json", Report),
    )


def require_output(out: Path) -> None:
    """Whether a folder holds a finished output.

    Raises:
        ConfigError: it does not.
    """
    if not (out / "plan.json").exists() or not (out / "artifact" / "artifact.json").exists():
        partial = out.with_name(out.name + ".partial")
        hint = (
            "Its making was interrupted: run the same edgegen compress again."
            if partial.exists()
            else "Make one with: edgegen compress MODEL --profile NAME --out " + str(out)
        )
        raise ConfigError(f"{out}: no edgegen output in it", hint=hint)
