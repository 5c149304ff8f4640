"""A finished output folder: read it, verify it again. Needs no torch."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from edgegen.catalog import is_this_machine, load_target
from edgegen.common.codec import load_json, save_json
from edgegen.errors import ConfigError
from edgegen.evaluate.gates import with_gates
from edgegen.receipt import write_receipt
from edgegen.records.artifact import Artifact
from edgegen.records.evaluation import EVALUATION_FILE, Evaluation
from edgegen.records.plan import Plan
from edgegen.records.report import Report
from edgegen.verify.emulated import emulate_artifact
from edgegen.verify.verify import verify_artifact

EVALUATION = "evaluation"
"""Folder of an output whose artifact was held against gates."""
BAKEOFF_FILE = "bakeoff.json"
"""Marks a folder that holds an output for each of several targets."""

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


def measure_output(
    folder: Path,
    *,
    command: str,
    runtime: str = "",
    emulate: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Measure the artifact in a folder on its runtime; writes report.json and report.html there.

    Args:
        emulate: whether to run it on the profile's own processor core too.
    """
    plan = load_json(folder / "plan.json", Plan)
    report = verify_artifact(
        folder / "artifact",
        folder / "reference",
        plan,
        load_target(plan.target),
        is_device=is_this_machine(plan.profile),
        strict_folder=folder / "strict",
        runtime=runtime,
        command=command,
        progress=progress,
    )
    if emulate:
        report = _with_emulation(folder, report, plan, progress)
    report = with_gates(report, read_evaluation(folder))
    save_report(folder, report, plan)
    return report


def save_report(folder: Path, report: Report, plan: Plan) -> None:
    """Write a receipt, as a record and as a page."""
    save_json(folder / "report.json", report)
    write_receipt(folder / "report.html", report, plan)


def read_evaluation(folder: Path) -> Evaluation | None:
    """What an output's artifact was found to be when it was held against gates; None if it was not."""
    path = folder / EVALUATION / EVALUATION_FILE
    return load_json(path, Evaluation) if path.is_file() else None


def _with_emulation(folder: Path, report: Report, plan: Plan, progress: Callable[[int, int], None] | None) -> Report:
    """The report with what emulation adds. What does not run here, or was altered, is not tried there."""
    if not all(check.passed for check in report.checks if check.name in ("intact", "loads")):
        return report
    found = emulate_artifact(
        folder / "artifact",
        folder / "reference",
        plan,
        load_target(plan.target),
        runtime=report.runtime,
        progress=progress,
    )
    return msgspec.structs.replace(
        report,
        emulated=found.runs,
        checks=(*report.checks, *found.checks),
        passed=report.passed and all(check.passed for check in found.checks),
        notes=(*report.notes, *found.notes),
    )


def verify(out: str | Path, *, emulate: bool = False, command: str = "", notify: Notify | None = None) -> Result:
    """Verify a finished output again, on this machine.

    Args:
        emulate: whether to run it on the profile's own processor core too; see `edgegen emulate setup`.

    Raises:
        ConfigError: no finished output there.
    """
    folder = Path(out)
    require_output(folder)
    tell = notify or (lambda *event: None)
    tell("verify", "started", 0, 1)
    measure_output(
        folder,
        command=command,
        emulate=emulate,
        progress=lambda done, total: tell("verify", "running", done, total),
    )
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
        place = out.resolve()
        interrupted = bool(place.name) and place.with_name(place.name + ".partial").exists()
        hint = (
            "Its making was interrupted: run the same edgegen compress again."
            if interrupted
            else "Make one with: edgegen compress MODEL --profile NAME --out " + str(out)
        )
        raise ConfigError(f"{out}: no edgegen output in it", hint=hint)


def typed_command() -> str:
    """What the user typed, where this is the command line."""
    program = Path(sys.argv[0]) if sys.argv else Path()
    is_cli = program.name.startswith("edgegen") or program.parts[-2:] == ("edgegen", "__main__.py")
    return shlex.join(["edgegen", *sys.argv[1:]]) if is_cli else ""
