"""Light releases: another template, other settings or a LoRA adapter for an installed model. Kilobytes, not megabytes.

A light release holds only the files that change and refers to a full release by its manifest's digest. A device puts
both together (`accept.compose`). Weights cannot be changed this way: that is what segments are for. A LoRA file leaves
them as they are and is put over them when the model is opened, so with one the release is of kind `adapter`: its
answers are others, and it has golden answers of its own.

Changes do not lie on changes: a release with a new template *and* an adapter names both.
"""

from __future__ import annotations

import datetime
import shutil
import tempfile
from pathlib import Path

import msgspec

from edgegen.bundle.accept import require_full
from edgegen.bundle.golden import Result, ask_prompts
from edgegen.bundle.layout import blob_file, target_file
from edgegen.bundle.manifest import MANIFEST_NAME, parse_manifest, safe_path
from edgegen.bundle.pack import RECEIPT, TEMPLATE, Packed, Wanted, arches, carried_prompt, write_bundle
from edgegen.bundle.repository import read_bundle
from edgegen.bundle.segments import describe_folder
from edgegen.common.codec import load_json, read_bytes, save_json
from edgegen.common.files import digest_bytes, digest_file
from edgegen.errors import ConfigError, UnsupportedError
from edgegen.records.artifact import Artifact, ArtifactFile
from edgegen.records.bundle import Golden, Manifest, Provenance
from edgegen.records.evaluation import EVALUATION_FILE
from edgegen.runtime.adapters import TAKE_ADAPTERS
from edgegen.runtime.text import Text

ADAPTER = "adapter.gguf"
"""The LoRA file's name in a release."""

_RECORD = "artifact.json"
_MAY_JOIN = (TEMPLATE, "generation_config.json")
"""What a light release may add where its base has none."""
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
    base: Path,
    changes: dict[str, Path],
    out: Path,
    wanted: Wanted,
    *,
    adapter: Path | None = None,
    runtime: str = "",
    now: datetime.datetime | None = None,
) -> Packed:
    """Pack files that replace or join those of a full release. The bundle is not signed yet.

    Args:
        base: the full release's bundle.
        changes: path in the release → file with the new contents.
        wanted: as for a full release; limits stay the base's unless `health` says otherwise.
        adapter: LoRA file in GGUF; the base's golden prompts are answered with it.
        runtime: one that answers them; empty: the first that takes adapters and is installed.

    Raises:
        ConfigError: nothing to change, a model file among it, or a template or tokenizer that cannot be read.
        UnsupportedError: the base is no full release, or its runtimes take no adapters.
        DeviceError: the runtime refuses the adapter; the message carries its reason.
    """
    manifest, digest = read_manifest(base)
    require_full(manifest)
    if adapter is not None:
        _require_adaptable(manifest, adapter)
    artifact = _artifact(base, manifest)
    if not changes and adapter is None:
        raise ConfigError("nothing to change", hint="Name files with --replace PATH=FILE, or --adapter FILE.")
    for path, source in changes.items():
        if path in artifact.model_files or path in (_RECORD, RECEIPT, EVALUATION_FILE, MANIFEST_NAME, ADAPTER):
            raise ConfigError(f"{path}: cannot be changed by a light release", hint="Pack a full release.")
        if not safe_path(path):
            raise ConfigError(f"{path!r}: is not a safe relative path")
        known = [file.path for file in manifest.files]
        if path not in known and path not in _MAY_JOIN:
            raise ConfigError(f"{path}: the release has no such file", hint=f"It has {', '.join(known)}.")
        if not source.is_file():
            raise ConfigError(f"{source}: no such file")
    with tempfile.TemporaryDirectory(prefix="edgegen-") as scratch:
        folder = Path(scratch)
        paths = [*changes, *([_RECORD] if changes else []), *([ADAPTER] if adapter else [])]
        for path, source in changes.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / path)
        if changes:
            save_json(folder / _RECORD, _with_changes(artifact, folder, changes))
            _try_text(base, manifest, folder)
        light, notes = _light(manifest, digest, wanted, now), tuple[str, ...]()
        if TEMPLATE in changes and light.provenance is not None:
            origin = msgspec.structs.replace(light.provenance, prompt=carried_prompt(folder))
            light = msgspec.structs.replace(light, provenance=origin)
        if adapter is not None:
            shutil.copyfile(adapter, folder / ADAPTER)
            asked = _ask_adapted(base, manifest, folder / ADAPTER, runtime)
            light, notes = _adapted(light, asked, (folder / ADAPTER).stat().st_size), _effect(manifest.golden, asked)
        files, uncut = describe_folder(folder, sorted(paths))
        light = msgspec.structs.replace(light, files=files, install_bytes=sum(file.bytes for file in files))
        sources = {file.path: folder / file.path for file in files}
        return write_bundle(out, light, sources, role=wanted.role, notes=(*notes, *uncut))


def _with_changes(artifact: Artifact, folder: Path, changes: dict[str, Path]) -> Artifact:
    """The artifact's record with the changed files in `folder`."""
    changed = {
        path: ArtifactFile(path=path, bytes=(folder / path).stat().st_size, digest=digest_file(folder / path))
        for path in changes
    }
    kept = [changed.pop(file.path, file) for file in artifact.files]
    return msgspec.structs.replace(artifact, files=(*kept, *changed.values()))


def _light(base: Manifest, digest: str, wanted: Wanted, now: datetime.datetime | None) -> Manifest:
    """The base's manifest as a light release's, still with the base's files."""
    provenance = base.provenance or Provenance(model="", model_digest="", data_digest="", plan_digest="")
    return msgspec.structs.replace(
        base,
        name=wanted.name,
        version=wanted.version,
        epoch=wanted.epoch,
        created=(now or datetime.datetime.now(datetime.UTC)).isoformat(timespec="seconds"),
        kind="light",
        base=digest,
        compat=msgspec.structs.replace(
            base.compat,
            arch=arches(wanted.arch) or base.compat.arch,
            min_agent=wanted.min_agent or base.compat.min_agent,
        ),
        health=wanted.health or base.health,
        provenance=msgspec.structs.replace(provenance, parent=wanted.parent or digest),
        license=wanted.license or base.license,
    )


def _require_adaptable(base: Manifest, adapter: Path) -> None:
    """Refuse what cannot be a base with an adapter, before any model is loaded."""
    if not adapter.is_file():
        raise ConfigError(f"{adapter}: no such file")
    with adapter.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ConfigError(
                f"{adapter}: no LoRA file in GGUF", hint="llama.cpp's convert_lora_to_gguf.py writes one."
            )
    if not TAKE_ADAPTERS & set(base.compat.runtimes):
        raise UnsupportedError(
            f"{base.name} {base.version}: is for {base.target}, and {', '.join(base.compat.runtimes)} take no adapters",
            hint="Use a release for gguf, or merge the adapter into the weights and pack a full release.",
        )
    if any(file.path.casefold() == ADAPTER for file in base.files):
        raise ConfigError(f"{base.name} {base.version}: has a file {ADAPTER} already", hint="Pack the base without it.")


def _ask_adapted(base: Path, manifest: Manifest, adapter: Path, runtime: str) -> Result:
    """The base's golden prompts, answered with an adapter over its weights in a fresh process."""
    able = [name for name in manifest.compat.runtimes if name in TAKE_ADAPTERS]
    with tempfile.TemporaryDirectory(prefix="edgegen-") as scratch:
        folder = Path(scratch)
        for file in manifest.files:
            blob = base / blob_file(file.digest)
            if not blob.is_file() or digest_file(blob) != file.digest:
                raise ConfigError(f"{blob}: missing or altered since it was packed", hint="Pack the base again.")
            (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
            (folder / file.path).symlink_to(blob.resolve())
        prompts = tuple(golden.ids for golden in manifest.golden)
        return ask_prompts(folder, prompts, runtime=runtime or able[0], adapter=adapter)


def _adapted(light: Manifest, asked: Result, size: int) -> Manifest:
    """A light release as one with an adapter of so many bytes."""
    able = (asked.runtime, *(name for name in light.compat.runtimes if name in TAKE_ADAPTERS - {asked.runtime}))
    compat = msgspec.structs.replace(
        light.compat,
        runtimes=able,
        runtime_versions=f">={asked.version}",
        min_ram_bytes=light.compat.min_ram_bytes + size if light.compat.min_ram_bytes else 0,
    )
    return msgspec.structs.replace(
        light,
        kind="adapter",
        adapter=ADAPTER,
        compat=compat,
        golden=asked.golden,
        reference=asked.reference,
        # The adapter is work beside the plan's, and how much the plan does not say.
        provenance=light.provenance and msgspec.structs.replace(light.provenance, terms=None),
    )


def _effect(before: tuple[Golden, ...], asked: Result) -> tuple[str, ...]:
    """Notes on an adapter that does less than somebody may think."""
    if not asked.golden:
        return ("With the adapter no golden prompt is answered, so devices can try only whether it loads.",)
    if len(asked.golden) < len(before):
        return (
            f"With the adapter {len(before) - len(asked.golden)} golden prompts are not answered; they are left out.",
        )
    if asked.golden == before:
        return ("The adapter changes no golden answer, not even its probability: is it for this model?",)
    return ()


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
