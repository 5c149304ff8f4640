"""`edgegen run pipeline.toml`: every step from raw data to a bundle, each skipped where its inputs did not change.

A step is done when its result is whole and `chain.json` holds the digest of what went into it: its settings and the
digests of the steps before. Steps that train or compress go on where they were cut off, by themselves.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgegen import __version__
from edgegen.common.codec import digest_record, load_json, load_toml, save_json
from edgegen.common.files import digest_file
from edgegen.errors import ConfigError, UnsupportedError, VerificationError
from edgegen.evaluate.gates import load_gates
from edgegen.records.artifact import Artifact
from edgegen.records.base import Record
from edgegen.records.bundle import Bundle
from edgegen.records.chain import CHAIN_FILE, Chain, ChainState, Course, Learn, Pack, Shrink, StepState, Teach
from edgegen.records.dataset import DATASET_FILE
from edgegen.records.plan import Plan
from edgegen.records.recipe import Source
from edgegen.records.training import TRAINING_FILE, Training

if TYPE_CHECKING:
    from edgegen.sdk.tuning import Course as CourseArguments

_DISTILLING = ("loss", "alpha", "temperature", "labels", "top", "on_policy")
Told = Callable[[str, int, int, str], None]
"""(step, done, of, words)."""


class Step(Record, frozen=True):
    """What a step would do."""

    name: str
    out: str
    done: bool
    why: str


def load_chain(path: str | Path) -> Chain:
    """A pipeline; its relative paths are its folder's.

    Raises:
        ConfigError: no such file, an unknown key, or steps that do not go together.
    """
    place = Path(path).expanduser()
    chain = load_toml(place, Chain)
    if chain.schema != 1:
        raise ConfigError(f"{place}: schema {chain.schema} is not supported", hint="Write schema = 1.")
    if chain.data is None and not chain.data_folder and (chain.teacher or chain.student):
        raise ConfigError(f"{place}: [teacher] and [student] need data", hint="Add [data], or data_folder.")
    if chain.pack is not None and chain.compress is None:
        raise ConfigError(f"{place}: [pack] needs [compress]")
    if not any((chain.data, chain.teacher, chain.student, chain.compress)):
        raise ConfigError(f"{place}: there is no step in it", hint="Add [data], [teacher], [student] or [compress].")

    def near(name: str) -> str:
        if not name:
            return name
        found = place.parent / Path(name).expanduser()
        return os.path.normpath(found) if found.exists() else name

    data = chain.data
    if data is not None:
        data = msgspec.structs.replace(
            data,
            source=tuple(msgspec.structs.replace(s, path=near(s.path)) for s in data.source),
            redact=msgspec.structs.replace(data.redact, rules=near(data.redact.rules)),
            bias=msgspec.structs.replace(data.bias, groups=near(data.bias.groups)),
            decontaminate=msgspec.structs.replace(
                data.decontaminate, against=tuple(map(near, data.decontaminate.against))
            ),
        )
    compress = chain.compress
    if compress is not None and compress.gates:
        limits = near(compress.gates)
        load_gates(limits)  # a mistake in it is said now, not when all else is done
        compress = msgspec.structs.replace(compress, gates=limits)
    out = Path(chain.out).expanduser()
    return msgspec.structs.replace(
        chain,
        model=near(chain.model),
        out=os.path.normpath(place.parent / out),
        data=data,
        data_folder=near(chain.data_folder),
        student=msgspec.structs.replace(chain.student, student=near(chain.student.student)) if chain.student else None,
        compress=compress,
        pack=msgspec.structs.replace(chain.pack, keys=near(chain.pack.keys)) if chain.pack else None,
    )


def run_chain(chain: Chain, *, told: Told | None = None) -> ChainState:
    """Run every step that is not done.

    Raises:
        ConfigError: what a step refuses, or a gate that is not passed.
        InfeasibleError, VerificationError, and whatever else a step raises; the steps before stay done.
    """
    require_steps(chain)
    return _Run(chain, told or (lambda step, done, of, words: None)).all()


def dry_run(chain: Chain) -> tuple[Step, ...]:
    """What `run_chain` would do; nothing is written.

    Raises:
        ConfigError, UnsupportedError: what a step would refuse of its settings.
    """
    require_steps(chain)
    return _Run(chain, lambda step, done, of, words: None).planned()


def require_steps(chain: Chain) -> None:
    """Look at every step's settings before the first begins, so that the last is not refused after hours.

    Raises:
        ConfigError, UnsupportedError: a step would refuse its settings; the message names its section.
    """
    checks: tuple[tuple[str, Any, Callable[[Any], None]], ...] = (
        ("teacher", chain.teacher, _check_teacher),
        ("student", chain.student, _check_student),
        ("compress", chain.compress, _check_compress),
        ("pack", chain.pack, _check_pack),
    )
    for section, settings, check in checks:
        if settings is None:
            continue
        try:
            check(settings)
        except (ConfigError, UnsupportedError) as error:
            raise type(error)(f"[{section}]: {error}", hint=error.hint) from error
    for name, limit in msgspec.structs.asdict(chain.gates).items():
        if limit is not None and not limit > 0:
            raise ConfigError(f"[gates]: {name} must be above 0, not {limit:g}")


def _check_teacher(wanted: Teach) -> None:
    from edgegen.sdk.tuning import require_course
    from edgegen.tune.adapters import Adapter, require_adapter, require_method

    require_method(wanted.method)
    require_adapter(Adapter(rank=wanted.rank, alpha=wanted.alpha, dropout=wanted.dropout))
    require_course(_course(wanted))


def _check_student(wanted: Learn) -> None:
    from edgegen.sdk.tuning import require_course
    from edgegen.tune.distill import Distilling, require_distilling

    require_distilling(Distilling(**{name: getattr(wanted, name) for name in _DISTILLING}))
    require_course(_course(wanted))


def _check_compress(wanted: Shrink) -> None:
    from edgegen.sdk.wishes import resolve

    said = msgspec.to_builtins(wanted)
    resolve(said.pop("profile"), (said.pop("target"),), said)


def _check_pack(wanted: Pack) -> None:
    from edgegen.bundle.keys import load_settings

    if wanted.keys:
        load_settings(Path(wanted.keys))


def _course(wanted: Teach | Learn) -> CourseArguments:
    return {name: getattr(wanted, name) for name in Course.__struct_fields__}  # type: ignore[return-value]


class _Run:
    def __init__(self, chain: Chain, told: Told) -> None:
        self._chain, self._told = chain, told
        self._out = Path(chain.out)
        path = self._out / CHAIN_FILE
        self._state = load_json(path, ChainState) if path.is_file() else ChainState(1, chain.name, "")
        self._key = ""
        self._data, self._model = chain.data_folder, chain.model

    def _steps(self) -> list[tuple[str, Any, Callable[[Path], tuple[str, str]], str]]:
        """Name, settings, work, and the file that shows that its folder is whole."""
        chain = self._chain
        found: list[tuple[str, Any, Callable[[Path], tuple[str, str]], str]] = []
        if chain.data is not None:
            found.append(("data", [chain.data, self._sources(chain.data.source)], self._build, DATASET_FILE))
        if chain.teacher is not None:
            found.append(("teacher", chain.teacher, self._teach, TRAINING_FILE))
        if chain.student is not None:
            found.append(("student", chain.student, self._learn, TRAINING_FILE))
        if chain.compress is not None:
            gates = chain.compress.gates
            limits = [digest_file(Path(gates))] if gates and Path(gates).is_file() else []
            found.append(("build", [chain.compress, __version__, *limits], self._compress, "build.json"))
        if chain.pack is not None:
            found.append(("bundle", chain.pack, self._pack, "bundle.json"))
        return found

    @staticmethod
    def _sources(sources: tuple[Source, ...]) -> list[Any]:
        """Digests of the files, so that changed data is noticed."""
        found: list[Any] = []
        for source in sources:
            path = Path(source.path).expanduser()
            files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
            found += [(str(p), digest_file(p)) if p.is_file() else str(p) for p in files]
        return found

    def _first_key(self) -> str:
        folder = Path(self._chain.model).expanduser()
        weights = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
        data = Path(self._chain.data_folder).expanduser()
        said = [digest_file(data / DATASET_FILE)] if (data / DATASET_FILE).is_file() else []
        said += [digest_file(data)] if data.is_file() else []
        return digest_record(
            [self._chain.model, [digest_file(path) for path in weights], self._chain.data_folder, said]
        )

    def _done(self, name: str, key: str, out: Path, mark: str) -> StepState | None:
        step = next((s for s in self._state.steps if s.name == name), None)
        return step if step is not None and step.key == key and (out / mark).is_file() else None

    def planned(self) -> tuple[Step, ...]:
        key, found, stale = self._first_key(), [], ""
        for name, settings, _, mark in self._steps():
            out = self._out / name
            key = digest_record([key, name, msgspec.to_builtins(settings)])
            step = self._done(name, key, out, mark) if not stale else None
            if step is None:
                known = any(s.name == name for s in self._state.steps)
                why = (
                    f"{stale} is made anew" if stale else "its settings or inputs changed" if known else "not made yet"
                )
                stale = stale or name
            found.append(Step(name=name, out=str(out), done=step is not None, why=step.summary if step else why))
            key = step.digest + key if step else key
        return tuple(found)

    def all(self) -> ChainState:
        key = self._first_key()
        steps = self._steps()
        for number, (name, settings, work, mark) in enumerate(steps):
            out = self._out / name
            key = digest_record([key, name, msgspec.to_builtins(settings)])
            step = self._done(name, key, out, mark)
            if step is None:
                self._told(name, number, len(steps), "begins")
                started = time.perf_counter()
                digest, summary = work(out)
                step = StepState(name, key, str(out), digest, summary, time.perf_counter() - started)
                later = [s[0] for s in steps[number:]]
                kept = tuple(s for s in self._state.steps if s.name not in later)
                lineage = self._state.lineage or digest.removeprefix("sha256:")[:16]
                self._state = msgspec.structs.replace(self._state, steps=(*kept, step), lineage=lineage)
                save_json(self._out / CHAIN_FILE, self._state)
                self._told(name, number + 1, len(steps), summary)
            else:
                self._told(name, number + 1, len(steps), f"{step.summary} (done before)")
            self._after(name, out)
            key = step.digest + key
        return self._state

    def _after(self, name: str, out: Path) -> None:
        """What the next steps work on, and whether they may."""
        gates = self._chain.gates
        if name == "data":
            self._data = str(out)
        if name in ("teacher", "student"):
            self._model = str(out)
            limit = gates.max_heldout_loss if name == "teacher" else gates.max_student_loss
            loss = load_json(out / TRAINING_FILE, Training).heldout_after
            if limit is not None and (loss is None or loss > limit):
                raise VerificationError(
                    f"the {name} does not pass its gate: held-out loss {loss if loss is not None else 'unknown'}, "
                    f"at most {limit:g}",
                    hint="Give more data or steps, or relax [gates].",
                )

    # Steps

    def _build(self, out: Path) -> tuple[str, str]:
        from edgegen.prepare.build import build_dataset

        assert self._chain.data is not None
        built = build_dataset(
            self._chain.data, out, told=lambda step, done, of: self._told("data", done, of, step)
        ).dataset
        return built.digest, f"{sum(s.rows for s in built.splits):,} rows"

    def _teach(self, out: Path) -> tuple[str, str]:
        from edgegen.sdk.tuning import finetune
        from edgegen.tune.adapters import Adapter

        said = msgspec.to_builtins(self._chain.teacher)
        adapter = Adapter(rank=said.pop("rank"), alpha=said.pop("alpha"), dropout=said.pop("dropout"))
        training = finetune(
            self._model,
            data=self._data,
            out=out,
            adapter=adapter,
            told=lambda done, of, words: self._told("teacher", done, of, words),
            **said,
        )
        return training.identity, _losses(training)

    def _learn(self, out: Path) -> tuple[str, str]:
        from edgegen.sdk.tuning import distill
        from edgegen.tune.distill import Distilling

        said = msgspec.to_builtins(self._chain.student)
        how = {name: said.pop(name) for name in _DISTILLING}
        training = distill(
            self._model,
            data=self._data,
            out=out,
            how=Distilling(**how),
            told=lambda done, of, words: self._told("student", done, of, words),
            **said,
        )
        return training.identity, f"{training.parameters:,} parameters, {_losses(training)}"

    def _compress(self, out: Path) -> tuple[str, str]:
        from edgegen.sdk.pipeline import compress

        said = {k: v for k, v in msgspec.to_builtins(self._chain.compress).items() if v is not None}
        result = compress(
            self._model,
            data=self._data or None,
            out=out,
            notify=lambda stage, state, done, total: self._told("build", done, total, f"{stage} {state}"),
            **said,
        )
        if not result.passed:
            missed = ", ".join(check.name for check in result.report.checks if not check.passed)
            raise VerificationError(f"the artifact misses {missed}", hint=f"See {out}/report.html.")
        plan, artifact = load_json(out / "plan.json", Plan), load_json(out / "artifact" / "artifact.json", Artifact)
        size = (out / "artifact" / artifact.model).stat().st_size
        return digest_file(out / "artifact" / artifact.model), f"{size:,} bytes for {plan.profile.name}"

    def _pack(self, out: Path) -> tuple[str, str]:
        from edgegen.sdk.release import pack_bundle

        assert self._chain.pack is not None
        said = self._chain.pack
        release = pack_bundle(
            self._out / "build",
            keys=said.keys or None,
            out=out,
            name=said.name,
            version=said.version,
            license=said.license,
            runtime=said.runtime,
        )
        about: Bundle = release.bundle
        return about.digest, f"{about.name} {about.version}" + ("" if about.signed else ", not signed")


def _losses(training: Training) -> str:
    if training.heldout_before is None or training.heldout_after is None:
        return f"{training.steps} steps"
    return f"held-out loss {training.heldout_before:.3f} → {training.heldout_after:.3f}"
