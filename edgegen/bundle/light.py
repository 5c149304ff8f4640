"""Light releases: other prompts, chat template or settings for a model that is installed. Kilobytes, not megabytes.

A light release holds only the files that change and refers to a full release by its manifest's digest. A device puts
both together (`accept.compose`). Weights cannot be changed this way: that is what segments are for.
"""

from __future__ import annotations

import datetime
import shutil
import tempfile
from pathlib import Path

import msgspec

from edgegen.bundle.accept import compose
from edgegen.bundle.layout import blob_file, target_file
from edgegen.bundle.manifest import MANIFEST_NAME, parse_manifest, safe_path
from edgegen.bundle.pack import RECEIPT, Packed, Wanted, write_bundle
from edgegen.bundle.repository import read_bundle
from edgegen.bundle.segments import describe_folder
from edgegen.common.codec import load_json, read_bytes, save_json
from edgegen.common.files import digest_bytes, digest_file
from edgegen.errors import ConfigError
from edgegen.records.artifact import Artifact, ArtifactFile
from edgegen.records.bundle import BundleFile, Manifest, Provenance
from edgegen.runtime.text import Text

_RECORD = "artifact.json"
_LARGEST_SETTLED_BYTES = 64 << 20
"""Files up to this are put together to try the result."""


def read_manifest(bundle: Path) -> tuple[Manifest, str]:
    """A bundle's manifest and its digest. Whether it was signed is not looked at.

    Raises:
        ConfigError: not a bundle, or altered.
        TrustError: a manifest that a device would refuse.
    """
    about = read_bundle(bundle)
    path = bundle / target_file(about.target, about.digest)
    data = read_bytes(path)
    if digest_bytes(data) != about.digest:
        raise ConfigError(f"{path}: altered since it was packed", hint="Pack it again.")
    return parse_manifest(data, where=str(path)), about.digest


def pack_light(
    base: Path, changes: dict[str, Path], out: Path, wanted: Wanted, *, now: datetime.datetime | None = None
) -> Packed:
    """Pack files that replace or join those of a full release. The bundle is not signed yet.

    Args:
        base: the full release's bundle.
        changes: path in the release → file with the new contents.
        wanted: as for a full release; limits stay the base's unless `health` says otherwise.

    Raises:
        ConfigError: nothing to change, a model file among it, or a template or tokenizer that cannot be read.
        UnsupportedError: the base is no full release.
    """
    manifest, digest = read_manifest(base)
    compose(msgspec.structs.replace(manifest, kind="light", base=digest), manifest)  # raises if the base is not full
    artifact = _artifact(base, manifest)
    if not changes:
        raise ConfigError("nothing to change", hint="Name files with --replace PATH=FILE.")
    for path, source in changes.items():
        if path in artifact.model_files or path in (_RECORD, RECEIPT, MANIFEST_NAME):
            raise ConfigError(f"{path}: cannot be changed by a light release", hint="Pack a full release.")
        if not safe_path(path):
            raise ConfigError(f"{path!r}: is not a safe relative path")
        if not source.is_file():
            raise ConfigError(f"{source}: no such file")
    with tempfile.TemporaryDirectory(prefix="edgegen-") as scratch:
        folder = Path(scratch)
        for path, source in changes.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / path)
        changed = {
            path: ArtifactFile(path=path, bytes=(folder / path).stat().st_size, digest=digest_file(folder / path))
            for path in changes
        }
        kept = [changed.pop(file.path, file) for file in artifact.files]
        artifact = msgspec.structs.replace(artifact, files=(*kept, *changed.values()))
        save_json(folder / _RECORD, artifact)
        _try_text(base, manifest, folder)
        files, notes = describe_folder(folder, sorted([*changes, _RECORD]))
        light = _light(manifest, digest, files, wanted, now)
        return write_bundle(
            out, light, {file.path: folder / file.path for file in files}, role=wanted.role, notes=notes
        )


def _light(
    base: Manifest, digest: str, files: tuple[BundleFile, ...], wanted: Wanted, now: datetime.datetime | None
) -> Manifest:
    provenance = base.provenance or Provenance(model="", model_digest="", data_digest="", plan_digest="")
    return msgspec.structs.replace(
        base,
        name=wanted.name,
        version=wanted.version,
        epoch=wanted.epoch,
        created=(now or datetime.datetime.now(datetime.UTC)).isoformat(timespec="seconds"),
        kind="light",
        base=digest,
        files=files,
        install_bytes=sum(file.bytes for file in files),
        health=wanted.health or base.health,
        provenance=msgspec.structs.replace(provenance, parent=wanted.parent or digest),
        license=wanted.license or base.license,
    )


def _artifact(base: Path, manifest: Manifest) -> Artifact:
    for file in manifest.files:
        if file.path == _RECORD:
            return load_json(base / blob_file(file.digest), Artifact)
    raise ConfigError(f"{base}: has no {_RECORD}", hint="Pack the base again.")


def _try_text(base: Path, manifest: Manifest, changed: Path) -> None:
    """Read tokenizer and chat template as a device will; a template that cannot be read would stop it."""
    with tempfile.TemporaryDirectory(prefix="edgegen-") as scratch:
        folder = Path(scratch)
        for file in manifest.files:
            if file.bytes <= _LARGEST_SETTLED_BYTES and file.path.endswith((".json", ".jinja")):
                (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(base / blob_file(file.digest), folder / file.path)
        shutil.copytree(changed, folder, dirs_exist_ok=True)
        text = Text(folder)
        if text.has_template:
            text.conversation([{"role": "user", "content": "Hello"}])
