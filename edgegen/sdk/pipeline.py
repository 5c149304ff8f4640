"""The whole chain in one call: `edgegen.compress(model, profile=..., data=...)`.

Stages whose inputs did not change are skipped, so the same call after an interruption goes on where it was, and a
call with another budget reuses the measurements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack

import msgspec

from edgegen import __version__
from edgegen.catalog import load_target
from edgegen.common.codec import canonical_json, load_json
from edgegen.common.files import digest_file, remove_tree
from edgegen.errors import ConfigError, InfeasibleError
from edgegen.evaluate.gates import with_gates
from edgegen.records.build import Build
from edgegen.records.evaluation import Gates
from edgegen.records.plan import Infeasible, Plan
from edgegen.records.profile import Profile
from edgegen.records.report import Report
from edgegen.records.structure import Search
from edgegen.sdk import stages
from edgegen.sdk.job import HESSIANS, PLANS, STRUCTURES, Job, derived_job
from edgegen.sdk.output import (
    EVALUATION,
    Notify,
    Result,
    measure_output,
    read_evaluation,
    read_result,
    save_report,
    typed_command,
)
from edgegen.sdk.refining import REFINED, weights_identity
from edgegen.sdk.subject import Subject
from edgegen.sdk.wishes import Rounding, Wanted, Wishes, fit_task, resolve
from edgegen.sdk.workspace import Workspace

_JUDGED_ROWS = 200


def compress(
    model: str,
    *,
    profile: str | Profile,
    data: str | None = None,
    out: str | Path = "build",
    target: str = "gguf",
    notify: Notify | None = None,
    **wishes: Unpack[Wishes],
) -> Result:
    """Plan, compress, export and verify a model for a device.

    Args:
        model: a checkpoint's folder or a hub id.
        profile: a device's name, a TOML file's path, or a record.
        data: a file, folder or hub id; a quarter of its rows is held out for judging. None: a generic text.
        out: folder for the result; an earlier edgegen output there is replaced when the new one is whole.
        target: runtime; one that the profile's device runs.
        notify: told about progress.
        wishes: budgets and more, see `Wishes`.

    Returns:
        The result; its report may be a failing one.

    Raises:
        InfeasibleError: no plan keeps the budgets; the message names the binding one.
        ConfigError, UnsupportedError, DeviceError, NetworkError: see `edgegen.errors`.
    """
    wanted = resolve(profile, (target,), wishes)
    with opened_workspace(Path(out)) as workspace:
        run_chain(
            Subject(model, data, [load_target(target)], memory_bytes=wanted.memory_bytes),
            wanted,
            target,
            workspace,
            notify or (lambda *event: None),
        )
    return read_result(Path(out))


def plan(
    model: str,
    *,
    profile: str | Profile,
    data: str | None = None,
    out: str | Path = "build",
    target: str = "gguf",
    notify: Notify | None = None,
    **wishes: Unpack[Wishes],
) -> Plan | Infeasible:
    """Measure and plan only; arguments as `compress`. The work is kept beside `out` for a later `compress`.

    Returns:
        The plan, or why there is none.
    """
    wanted = resolve(profile, (target,), wishes)
    with opened_workspace(Path(out)) as workspace:
        subject = Subject(model, data, [load_target(target)], memory_bytes=wanted.memory_bytes)
        wanted = fit_task(wanted, subject.summary.task)
        job = Job(subject, wanted.profile, load_target(target), wanted.grids)
        try:
            return _plan(Run(workspace, notify or (lambda *event: None)), job, wanted)
        except _NoPlanError as error:
            return error.infeasible


def run_chain(subject: Subject, wanted: Wanted, target: str, workspace: Workspace, notify: Notify) -> None:
    """All stages for one target, in a locked workspace, which is finished at the end.

    Raises:
        As `compress`.
    """
    wanted = fitted(wanted, subject)
    job = Job(subject, wanted.profile, load_target(target), wanted.grids)
    run = Run(workspace, notify)
    plan = _plan(run, job, wanted)
    folder = workspace.folder
    job = derived_job(job, folder, plan.structure_name, wanted.grids)
    plan = _refined(run, job, plan, _seconds_to_refine(folder, wanted))
    key = key_of(job, plan)
    run.stage("compress", key, ("compressed",), lambda tell: stages.compress(job, folder, plan, progress=tell))
    exported = export(run, job, plan, wanted, key)
    run.stage("reference", key, ("reference",), lambda tell: stages.reference(job, folder, plan, progress=tell))
    prove(run, subject, plan, wanted, exported)


def _seconds_to_refine(folder: Path, wanted: Wanted) -> float:
    """For tuning: its share of the time, and what the search over structures had no use for."""
    if not (wanted.times.refinement and wanted.times.structures):
        return wanted.times.refinement
    return wanted.times.refinement + load_json(folder / "structures.json", Search).unspent_s


def _refined(run: Run, job: Job, plan: Plan, seconds: float) -> Plan:
    """The plan with its rounded weights tuned, where there is time for it."""
    folder = run.folder
    if not seconds:
        run.without(REFINED)
        return plan
    run.stage(
        "refine",
        [*weights_identity(job, plan, stages.read_kept(folder, plan)), seconds],
        (REFINED,),
        lambda tell: stages.refine(job, folder, plan, seconds=seconds, progress=tell),
    )
    return stages.add_refinement(folder, plan)


def fitted(wanted: Wanted, subject: Subject) -> Wanted:
    """Wishes for the model and data that were opened.

    Raises:
        ConfigError, UnsupportedError: as `fit_task`, or gates without rows to judge them on.
    """
    wanted = fit_task(wanted, subject.summary.task)
    if wanted.gates is not None and subject.split.ref.generic:
        raise ConfigError("gates are judged on your own rows", hint="Name them with --data.")
    return wanted


def key_of(job: Job, plan: Plan) -> str:
    """Of the stages that carry a plan out."""
    return canonical_json([job.identity, canonical_json(msgspec.structs.replace(plan, seconds=0.0)).decode()]).decode()


def export(run: Run, job: Job, plan: Plan, wanted: Wanted, key: str) -> str:
    """Write the artifact of what was compressed; the key of what is made of it."""
    packs = wanted.litertlm and plan.target == "litert"
    exported = f"{key} litertlm" if packs else key
    run.stage(
        "export",
        exported,
        ("artifact", "strict"),
        lambda tell: stages.export(job, run.folder, plan, litertlm=packs),
    )
    return exported


def prove(run: Run, subject: Subject, plan: Plan, wanted: Wanted, exported: str) -> None:
    """Verify the artifact, judge it, and put the finished folder into its place.

    Args:
        exported: key of the artifact.
    """
    folder = run.folder
    command = typed_command()
    run.stage(
        "verify",
        exported,
        ("report.json", "report.html"),
        lambda tell: measure_output(folder, command=command, progress=tell),
    )
    loads = next(c for c in load_json(folder / "report.json", Report).checks if c.name == "loads")
    if not loads.passed:
        run.forget("verify")  # the machine may have been at fault: the next run tries again
    _judge(run, exported, subject, wanted.gates if loads.passed else None, plan)
    run.finish(Build(schema=1, command=command, version=__version__, stages=()))


def _judge(run: Run, key: str, subject: Subject, gates: Gates | None, plan: Plan) -> None:
    """Evaluate the artifact, which runs, against the original, and add its gates to the receipt, kept or missed."""
    folder = run.folder
    if gates is None:
        if (folder / EVALUATION).exists():
            remove_tree(folder / EVALUATION)
    else:
        from edgegen.evaluate.gates import suites_of
        from edgegen.sdk.judging import evaluate  # needs torch

        limit = gates.evaluate.limit or _JUDGED_ROWS
        run.stage(
            "gates",
            [key, canonical_json(gates).decode(), _digests(gates)],
            (EVALUATION,),
            lambda tell: evaluate(
                str(folder),
                data=subject.split.ref.source,
                against=subject.ref.source,
                suites=suites_of(gates),
                out=folder / EVALUATION,
                limit=limit,
                gates=gates,
                named=str(run.out),
                told=lambda done, total, words: tell(done, total),
            ),
        )
    report = load_json(folder / "report.json", Report)
    judged = with_gates(report, read_evaluation(folder))
    if judged != report:
        save_report(folder, judged, plan)


def _digests(gates: Gates) -> list[str]:
    """Of the files that are asked from, so that a changed one is noticed."""
    return [digest_file(Path(name)) for name in (*gates.evaluate.fairness, gates.evaluate.unsafe) if name]


@contextmanager
def opened_workspace(out: Path) -> Iterator[Workspace]:
    """A locked workspace; left away if nothing was finished in it."""
    workspace = Workspace(out)
    with workspace.locked():
        try:
            yield workspace
        except BaseException:
            if [path.name for path in workspace.folder.iterdir()] == [".lock"]:
                remove_tree(workspace.folder)
            raise


class _NoPlanError(InfeasibleError):
    def __init__(self, infeasible: Infeasible) -> None:
        super().__init__(infeasible.message, hint=nearest(infeasible))
        self.infeasible = infeasible


def nearest(infeasible: Infeasible) -> str:
    """The plan that comes nearest, in words."""
    from edgegen.common.units import format_bytes

    near = infeasible.nearest
    quality = f"cosine {1 - near.kl:.5g}" if infeasible.task == "encoder" else f"KL {near.kl:.3g}"
    return (
        f"Nearest: {format_bytes(near.bytes)} on disk, {format_bytes(near.rss_bytes)} resident, "
        f"{near.decode_tokens_per_s:.3g} tok/s, {quality}."
    )


class Run:
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

    def done_before(self, name: str) -> None:
        """Say of a stage that another run did it for this one."""
        self._notify(name, "skipped", 1, 1)

    def without(self, *outputs: str) -> None:
        """Remove what a stage left that this run has not."""
        self._workspace.remove(*outputs)

    def forget(self, name: str) -> None:
        """Let a stage run again next time."""
        self._workspace.forget(name)

    def finish(self, build: Build) -> None:
        """Put the finished folder into the output's place."""
        self._workspace.finish(build)

    @property
    def folder(self) -> Path:
        return self._workspace.folder

    @property
    def out(self) -> Path:
        return self._workspace.out


def measure(run: Run, job: Job, wanted: Wanted) -> tuple[dict[str, Any], Rounding]:
    """Price grids and vocabularies.

    Returns:
        What decided the measurement, and how weights will be rounded.
    """
    folder, grids, vocab, keep = run.folder, wanted.grids, wanted.vocab, wanted.keep
    measuring = {**job.identity, "grids": grids, "vocab": vocab, **({"keep": keep} if keep else {})}
    is_compensated = wanted.rounding == "compensated" and not job.subject.is_streamed
    rounding: Rounding = "compensated" if is_compensated else "plain"
    measuring["rounding"] = rounding
    outputs = ("measured.json", "importance.npz", "vocabularies.npz")
    run.stage(
        "measure",
        measuring,
        (*outputs, HESSIANS) if rounding == "compensated" else outputs,
        lambda tell: stages.measure(job, folder, grids=grids, vocab=vocab, keep=keep, rounding=rounding, progress=tell),
    )
    return measuring, rounding


def _plan(run: Run, job: Job, wanted: Wanted) -> Plan:
    folder, grids = run.folder, wanted.grids
    if wanted.times.any and job.subject.is_streamed:
        raise ConfigError(
            "--budget works on a model in memory, and this one is measured block by block",
            hint="Leave --budget out, or give --memory more.",
        )
    measuring, rounding = measure(run, job, wanted)
    run.without(PLANS)
    searched: dict[str, Any] = {}
    if wanted.times.structures:
        searched = {
            "measured": measuring,
            "seconds": wanted.times.structures,
            "techniques": wanted.techniques,
            "budgets": canonical_json(wanted.budgets).decode(),
            "prefer": wanted.prefer,
            "profile": canonical_json(wanted.profile).decode(),
        }
        run.stage(
            "structures",
            searched,
            ("structures.json", STRUCTURES),
            lambda tell: stages.search_structures(
                job,
                folder,
                budgets=wanted.budgets,
                prefer=wanted.prefer,
                grids=grids,
                vocab=wanted.vocab,
                keep=wanted.keep,
                rounding=rounding,
                techniques=wanted.techniques,
                seconds=wanted.times.structures,
                progress=tell,
            ),
        )
    else:
        run.without("structures.json", STRUCTURES)
    planning = {
        "measured": measuring,
        **({"searched": searched} if searched else {}),
        "profile": canonical_json(wanted.profile).decode(),
        "budgets": canonical_json(wanted.budgets).decode(),
        "prefer": wanted.prefer,
        **({"times": canonical_json(wanted.times).decode()} if wanted.times.any else {}),
    }

    def work(tell: Callable[[int, int], None]) -> None:
        found = stages.make_plan(
            job,
            folder,
            budgets=wanted.budgets,
            prefer=wanted.prefer,
            grids=grids,
            rounding=rounding,
            times=wanted.times,
            progress=tell,
        )
        if isinstance(found, Infeasible):
            raise _NoPlanError(found)

    run.stage("plan", planning, ("plan.json",), work)
    return load_json(folder / "plan.json", Plan)
