"""Make a bundle of a finished output: the artifact's files, its receipt, golden answers, one manifest.

    build/{artifact/, report.json, plan.json, reference/, evaluation/}  →  bundle/{bundle.json, targets/, blobs/}

Only an artifact that passed its verification and its gates is packed; its limits become what a device holds it to. Its
evaluation travels along, so that whoever deploys can hold it against limits of their own. The folder is built beside
its place and renamed into it. `evaluation/` is there only where gates were given; signing adds `metadata/`.
"""

from __future__ import annotations

import datetime
import os
import shutil
from pathlib import Path

import msgspec

from edgegen.bundle.golden import Result, ask_artifact
from edgegen.bundle.layout import BUNDLE, ROLES, blob_file, target_file, target_path
from edgegen.bundle.manifest import check_label, check_manifest, safe_path
from edgegen.bundle.segments import describe_folder
from edgegen.common.codec import digest_record, encode_json, load_json
from edgegen.common.files import building, digest_bytes, digest_file, require_place
from edgegen.errors import ConfigError, TrustError, VerificationError
from edgegen.records.artifact import Artifact
from edgegen.records.bundle import (
    MANIFEST_SCHEMA,
    Bundle,
    BundleFile,
    Compat,
    Health,
    Manifest,
    Provenance,
)
from edgegen.records.evaluation import EVALUATION_FILE, Evaluation
from edgegen.records.plan import Plan
from edgegen.records.prompts import prompt_in
from edgegen.records.report import Report
from edgegen.runtime.registry import RUNTIMES

RECEIPT = "report.json"
TEMPLATE = "chat_template.jinja"
_ARCHES = {"arm64": "aarch64", "amd64": "x86_64"}


class Wanted(msgspec.Struct, frozen=True):
    """What the packer says of a release; everything else is measured or read."""

    name: str
    version: str
    epoch: int = 0
    license: str = ""
    """SPDX expression; empty: not stated, the artifact's licence files still travel."""
    parent: str = ""
    """Digest of the manifest that this one follows."""
    arch: tuple[str, ...] = ()
    """Processors that may take it; empty: any."""
    min_agent: str = ""
    health: Health | None = None
    """None: the plan's budgets."""
    role: str = "release"
    """`release`, or `dev` for developers' devices."""


class Packed(msgspec.Struct, frozen=True):
    """A bundle that was made."""

    folder: Path
    about: Bundle
    manifest: Manifest
    data: bytes
    """The manifest's exact bytes."""
    notes: tuple[str, ...]


def pack_bundle(
    build: Path, out: Path, wanted: Wanted, *, runtime: str = "", now: datetime.datetime | None = None
) -> Packed:
    """Pack a finished, passing output. The bundle is not signed yet.

    Args:
        build: what `edgegen compress` wrote, for one target.
        out: folder for the bundle; an earlier bundle there is replaced.
        runtime: one that answers the golden prompts; empty: the first that is installed.
        now: instead of the clock.

    Raises:
        ConfigError: no finished output, an altered file, or a name or version that is none.
        VerificationError: its report fails.
        UnsupportedError, DeviceError: the artifact cannot be asked here.
    """
    require_place(out, mark=BUNDLE, what="bundle")
    try:
        check_label(wanted.name, wanted.version, wanted.epoch, where="the release")
    except TrustError as error:
        raise ConfigError(str(error), hint="A device would refuse this.") from error
    folder = build / "artifact"
    artifact = load_json(folder / "artifact.json", Artifact)
    plan, report = load_json(build / "plan.json", Plan), load_json(build / RECEIPT, Report)
    _require_whole(folder, artifact, report)
    if not report.passed:
        failed = ", ".join(check.name for check in report.checks if not check.passed)
        raise VerificationError(
            f"{build}: its report fails ({failed}), and only verified artifacts are packed",
            hint=f"{build}/report.html says why.",
        )
    asked = ask_artifact(folder, build / "reference", runtime=runtime)
    paths = sorted(path.name for path in folder.iterdir() if path.is_file())
    files, notes = describe_folder(folder, paths)
    receipt = describe_folder(build, [RECEIPT])[0]
    sources = {file.path: folder / file.path for file in files} | {RECEIPT: build / RECEIPT}
    if (evaluated := _evaluation(build, artifact)) is not None:
        receipt = (*receipt, *describe_folder(evaluated.parent, [EVALUATION_FILE])[0])
        sources[EVALUATION_FILE] = evaluated
    manifest = Manifest(
        schema=MANIFEST_SCHEMA,
        name=wanted.name,
        version=wanted.version,
        created=(now or datetime.datetime.now(datetime.UTC)).isoformat(timespec="seconds"),
        epoch=wanted.epoch,
        kind="full",
        target=artifact.target,
        entry=artifact.model,
        settings=artifact.settings,
        files=(*files, *receipt),
        compat=_compat(artifact, plan, asked, wanted),
        install_bytes=sum(file.bytes for file in (*files, *receipt)),
        health=wanted.health or _health(plan),
        golden=asked.golden,
        reference=asked.reference,
        provenance=Provenance(
            model=plan.model.source,
            model_digest=plan.model.digest,
            data_digest=plan.data.digest,
            plan_digest=digest_record(plan),
            parent=wanted.parent,
            lineage=artifact.lineage or artifact.parent,
            profile=plan.profile.name,
            prompt=carried_prompt(folder),
            terms=plan.terms,
        ),
        license=wanted.license,
    )
    return write_bundle(out, manifest, sources, role=wanted.role, notes=notes)


def write_bundle(
    out: Path, manifest: Manifest, sources: dict[str, Path], *, role: str = "release", notes: tuple[str, ...] = ()
) -> Packed:
    """Write a bundle's folder.

    Args:
        sources: path in the release → file.

    Raises:
        ConfigError: a name, version or number that a device would refuse, or `out` holds something else.
    """
    if role not in ROLES:
        raise ConfigError(f"no role {role!r} signs manifests", hint="These do: " + ", ".join(ROLES) + ".")
    for file in manifest.files:
        if not safe_path(file.path):
            raise ConfigError(
                f"{sources[file.path]}: its name cannot travel", hint="Use letters, digits, dot, dash and underscore."
            )
    try:
        check_manifest(manifest, where=manifest.name)
    except TrustError as error:
        raise ConfigError(str(error), hint="A device would refuse this.") from error
    data = encode_json(manifest)
    digest = digest_bytes(data)
    target = target_path(manifest, role)
    about = Bundle(
        schema=1, target=target, digest=digest, name=manifest.name, version=manifest.version, role=role, signed=False
    )
    with building(out, mark=BUNDLE, what="bundle") as place:
        for file in manifest.files:
            _place(sources[file.path], place / blob_file(file.digest), file)
        _write(place / target_file(target, digest), data)
        _write(place / BUNDLE, encode_json(about))
    return Packed(folder=out, about=about, manifest=manifest, data=data, notes=notes)


def _place(source: Path, target: Path, file: BundleFile) -> None:
    """Copy a file under its digest, which is checked on the copy: it may change while it is packed."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    if digest_file(target) != file.digest:
        raise ConfigError(f"{source}: was changed while it was packed", hint="Pack it again.")
    with target.open("rb+") as stream:
        os.fsync(stream.fileno())


def carried_prompt(folder: Path) -> str:
    """Name and version of the prompt in a folder's chat template; empty if there is none."""
    path = folder / TEMPLATE
    return prompt_in(path.read_text("utf-8", errors="replace")) if path.is_file() else ""


def arches(names: tuple[str, ...]) -> tuple[str, ...]:
    """Processors by the names that Linux has for them."""
    return tuple(_ARCHES.get(name.lower(), name.lower()) for name in names)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _require_whole(folder: Path, artifact: Artifact, report: Report) -> None:
    for file in artifact.files:
        path = folder / file.path
        if not path.is_file() or digest_file(path) != file.digest:
            raise ConfigError(f"{path}: missing or altered since it was made", hint="Run the compression again.")
    model = next(file.digest for file in artifact.files if file.path == artifact.model)
    if report.digests.get("artifact") != model:
        raise ConfigError(
            f"{folder}: the report is about another artifact", hint=f"Verify it: edgegen verify {folder.parent}"
        )


def _evaluation(build: Path, artifact: Artifact) -> Path | None:
    """What the artifact was found to be against its gates; None if it was held against none."""
    path = build / "evaluation" / EVALUATION_FILE
    if not path.is_file():
        return None
    if load_json(path, Evaluation).model.digest != digest_record({file.path: file.digest for file in artifact.files}):
        raise ConfigError(f"{path}: is about another artifact", hint="Run the compression again with --gates.")
    return path


def _compat(artifact: Artifact, plan: Plan, asked: Result, wanted: Wanted) -> Compat:
    names = [asked.runtime, *(name for name in RUNTIMES[artifact.target] if name != asked.runtime)]
    return Compat(
        arch=arches(wanted.arch),
        runtimes=tuple(names),
        runtime_versions=f">={asked.version}" if asked.version else "",
        min_ram_bytes=plan.budgets.max_rss_bytes or plan.prediction.rss_bytes,
        min_agent=wanted.min_agent,
    )


def _health(plan: Plan) -> Health:
    """The plan's budgets: a release that breaks them on the device is worse than promised."""
    return Health(max_rss_bytes=plan.budgets.max_rss_bytes, min_tokens_per_s=plan.budgets.min_tokens_per_s)
