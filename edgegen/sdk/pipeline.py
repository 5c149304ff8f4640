"""The whole chain in one call: `edgegen.compress(model, profile=..., data=...)`.

Stages whose inputs did not change are skipped, so the same call after an interruption goes on where it was, and a
call with another budget reuses the measurements.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from edgegen import __version__
from edgegen.catalog import load_profile, load_target
from edgegen.common.codec import canonical_json, load_json
from edgegen.common.files import remove_tree
from edgegen.errors import ConfigError, InfeasibleError, UnsupportedError
from edgegen.records.build import Build
from edgegen.records.plan import Infeasible, Plan
from edgegen.records.profile import Budgets, Profile
from edgegen.records.report import Report
from edgegen.sdk import stages
from edgegen.sdk.job import Job
from edgegen.sdk.output import Notify, Result, measure_output, read_result
from edgegen.sdk.workspace import Workspace


def compress(
    model: str,
    *,
    profile: str | Profile,
    data: str | None = None,
    out: str | Path = "build",
    target: str = "gguf",
    max_bytes: int | None = None,
    max_rss_bytes: int | None = None,
    min_tokens_per_s: float | None = None,
    max_ttft_ms: float | None = None,
    max_kl: float | None = None,
    prefer: str = "auto",
    grids: tuple[str, ...] | None = None,
    vocab: str = "auto",
    notify: Notify | None = None,
) -> Result:
    """Plan, compress, export and verify a model for a device.

    Args:
        model: a checkpoint's folder or a hub id.
        profile: a device's name, a TOML file's path, or a record.
        data: a file, folder or hub id; a quarter of its rows is held out for judging. None: a generic text.
        out: folder for the result; an earlier edgegen output there is replaced when the new one is whole.
        target: runtime; one that the profile's device runs.
        max_bytes, max_rss_bytes, min_tokens_per_s, max_ttft_ms, max_kl: override the profile's budgets.
        prefer: what to optimise within the budgets: `quality`, `size`, `speed`; `auto` is quality where a size budget
            is given and size otherwise.
        grids: allowed number grids; None: what the target plans with.
        vocab: `auto`, `keep`, or a number of tokens.
        notify: told about progress.

    Returns:
        The result; its report may be a failing one.

    Raises:
        InfeasibleError: no plan keeps the budgets; the message names the binding one.
        ConfigError, UnsupportedError, DeviceError, NetworkError: see `edgegen.errors`.
    """
    wanted = resolve(profile, target, max_bytes, max_rss_bytes, min_tokens_per_s, max_ttft_ms, max_kl, prefer)
    with _opened(Path(out)) as workspace:
        job = Job(model, data, wanted.profile, load_target(target), grids)
        run = _Run(workspace, notify or (lambda *event: None))
        plan = _plan(run, job, wanted, grids, vocab)
        folder = workspace.folder
        key = canonical_json(
            [job.identity, canonical_json(msgspec.structs.replace(plan, seconds=0.0)).decode()]
        ).decode()
        run.stage("compress", key, ("compressed",), lambda tell: stages.compress(job, folder, plan, progress=tell))
        run.stage("export", key, ("artifact",), lambda tell: stages.export(job, folder, plan))
        run.stage("reference", key, ("reference",), lambda tell: stages.reference(job, folder, plan, progress=tell))
        command = _command()
        run.stage(
            "verify",
            key,
            ("report.json", "report.html"),
            lambda tell: measure_output(folder, command=command, progress=tell),
        )
        loads = next(c for c in load_json(folder / "report.json", Report).checks if c.name == "loads")
        if not loads.passed:
            workspace.forget("verify")  # the machine may have been at fault: the next run tries again
        workspace.finish(Build(schema=1, command=command, version=__version__, stages=()))
    return read_result(Path(out))


def plan(
    model: str,
    *,
    profile: str | Profile,
    data: str | None = None,
    out: str | Path = "build",
    target: str = "gguf",
    max_bytes: int | None = None,
    max_rss_bytes: int | None = None,
    min_tokens_per_s: float | None = None,
    max_ttft_ms: float | None = None,
    max_kl: float | None = None,
    prefer: str = "auto",
    grids: tuple[str, ...] | None = None,
    vocab: str = "auto",
    notify: Notify | None = None,
) -> Plan | Infeasible:
    """Measure and plan only; arguments as `compress`. The work is kept beside `out` for a later `compress`.

    Returns:
        The plan, or why there is none.
    """
    wanted = resolve(profile, target, max_bytes, max_rss_bytes, min_tokens_per_s, max_ttft_ms, max_kl, prefer)
    with _opened(Path(out)) as workspace:
        job = Job(model, data, wanted.profile, load_target(target), grids)
        try:
            return _plan(_Run(workspace, notify or (lambda *event: None)), job, wanted, grids, vocab)
        except _NoPlanError as error:
            return error.infeasible


class Wanted(msgspec.Struct, frozen=True):
    """A device with the budgets that count."""

    profile: Profile
    budgets: Budgets
    prefer: str


def resolve(
    profile: str | Profile,
    target: str,
    max_bytes: int | None,
    max_rss_bytes: int | None,
    min_tokens_per_s: float | None,
    max_ttft_ms: float | None,
    max_kl: float | None,
    prefer: str,
) -> Wanted:
    """Load the profile and lay the given budgets over its own.

    Raises:
        ConfigError: unknown profile, a budget that is not positive, an unknown preference, or size without a limit on
            KL.
        UnsupportedError: the device does not run the target, or this version cannot write it.
    """
    from edgegen.export.registry import exporter_for

    found = load_profile(profile) if isinstance(profile, str) else profile
    exporter_for(target)
    if target not in found.targets:
        raise UnsupportedError(
            f"profile {found.name} does not run target {target}",
            hint="It runs: " + ", ".join(found.targets) + ".",
        )
    given: dict[str, Any] = {
        "max_bytes": max_bytes,
        "max_rss_bytes": max_rss_bytes,
        "min_tokens_per_s": min_tokens_per_s,
        "max_ttft_ms": max_ttft_ms,
        "max_kl": max_kl,
    }
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        if not value > 0:
            raise ConfigError(
                f"budget {name} is {value}; it must be above 0", hint="Leave it out for the profile's own."
            )
    if prefer not in ("auto", "quality", "size", "speed"):
        raise ConfigError(f"prefer: {prefer!r} is not one of auto, quality, size, speed")
    if prefer == "auto":
        prefer = "quality" if max_bytes is not None or max_rss_bytes is not None else "size"
    budgets = msgspec.structs.replace(found.budgets, **given)
    if prefer == "quality" and max_kl is None and (max_bytes is not None or max_rss_bytes is not None):
        # The user set the size: quality is what it buys, not a second limit that they did not ask for.
        budgets = msgspec.structs.replace(budgets, max_kl=None)
    if prefer != "quality" and budgets.max_kl is None:
        raise ConfigError(f"preferring {prefer} needs a limit on quality", hint="Add --max-kl, for example 0.05.")
    return Wanted(profile=found, budgets=budgets, prefer=prefer)


@contextmanager
def _opened(out: Path) -> Iterator[Workspace]:
    """A locked workspace; left away if nothing was finished in it."""
    workspace = Workspace(out)
    with workspace.locked():
        try:
            yield workspace
        except BaseException:
            if [path.name for path in workspace.folder.iterdir()] == [".lock"]:
                remove_tree(workspace.folder)
            raise


def _command() -> str:
    """What the user typed, where this is the command line."""
    program = Path(sys.argv[0]) if sys.argv else Path()
    is_cli = program.name.startswith("edgegen") or program.parts[-2:] == ("edgegen", "__main__.py")
    return shlex.join(["edgegen", *sys.argv[1:]]) if is_cli else ""


class _NoPlanError(InfeasibleError):
    def __init__(self, infeasible: Infeasible) -> None:
        super().__init__(infeasible.message, hint=nearest(infeasible))
        self.infeasible = infeasible


def nearest(infeasible: Infeasible) -> str:
    """The plan that comes nearest, in words."""
    from edgegen.common.units import format_bytes

    near = infeasible.nearest
    return (
        f"Nearest: {format_bytes(near.bytes)} on disk, {format_bytes(near.rss_bytes)} resident, "
        f"{near.decode_tokens_per_s:.3g} tok/s, KL {near.kl:.3g}."
    )


class _Run:
    """Runs stages in a workspace and tells about them."""

    def __init__(self, workspace: Workspace, notify: Notify) -> None:
        self._workspace = workspace
        self._notify = notify

    def stage(
        self, name: str, key: Any, outputs: tuple[str, ...], work: Callable[[Callable[[int, int], None]], Any]
    ) -> None:
        def tell(done: int, total: int) -> None:
            self._notify(name, "running", done, total)

        def run() -> None:
            self._notify(name, "started", 0, 0)
            work(tell)

        skipped = self._workspace.stage(name, key, outputs, run)
        self._notify(name, "skipped" if skipped else "finished", 1, 1)

    @property
    def folder(self) -> Path:
        return self._workspace.folder


def _plan(run: _Run, job: Job, wanted: Wanted, grids: tuple[str, ...] | None, vocab: str) -> Plan:
    folder = run.folder
    measuring = {**job.identity, "grids": grids, "vocab": vocab}
    run.stage(
        "measure",
        measuring,
        ("measured.json", "importance.npz", "vocabularies.npz"),
        lambda tell: stages.measure(job, folder, grids=grids, vocab=vocab, progress=tell),
    )
    planning = {
        "measured": measuring,
        "profile": canonical_json(wanted.profile).decode(),
        "budgets": canonical_json(wanted.budgets).decode(),
        "prefer": wanted.prefer,
    }

    def work(tell: Callable[[int, int], None]) -> None:
        found = stages.make_plan(job, folder, budgets=wanted.budgets, prefer=wanted.prefer, grids=grids, progress=tell)
        if isinstance(found, Infeasible):
            raise _NoPlanError(found)

    run.stage("plan", planning, ("plan.json",), work)
    return load_json(folder / "plan.json", Plan)
