"""From a finished output to a signed bundle. Needs no torch."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import msgspec

from edgegen.bundle.delta import Transfer, transfer
from edgegen.bundle.layout import BUNDLE
from edgegen.bundle.light import pack_light, read_manifest
from edgegen.bundle.pack import Packed, Wanted
from edgegen.bundle.pack import pack_bundle as _pack
from edgegen.common.codec import load_json
from edgegen.errors import ConfigError
from edgegen.records.bundle import Bundle, Health, Manifest
from edgegen.records.plan import Plan
from edgegen.sdk.artifacts import find_artifact


class Release(msgspec.Struct, frozen=True):
    """A bundle that was made, and how it compares with the release before."""

    folder: Path
    bundle: Bundle
    manifest: Manifest
    previous: str
    """Version of the release before, empty for the first."""
    transfer: Transfer | None
    """What a device with the release before has to fetch; None for the first."""
    notes: tuple[str, ...]


def pack_bundle(
    build: str | Path,
    *,
    keys: str | Path | None = None,
    out: str | Path | None = None,
    name: str = "",
    version: str = "",
    epoch: int | None = None,
    target: str = "",
    runtime: str = "",
    replace: dict[str, str | Path] | None = None,
    adapter: str | Path | None = None,
    role: str = "release",
    arch: tuple[str, ...] = (),
    license: str = "",
    min_agent: str = "",
    health: Health | None = None,
    more_keys: tuple[Path, ...] = (),
) -> Release:
    """Pack a finished output, or a change to a bundle, and sign it.

    Args:
        build: what `edgegen compress` wrote; with `replace` or `adapter`, a bundle that is changed.
        keys: folder of keys; None: the bundle is left unsigned.
        out: folder for the bundle; None: `bundles/<name>-<version>`.
        name: of the product, lower-case letters, digits and dashes; empty: the release before's, or the model's.
        version: semantic version; empty: one minor step after the newest that these keys signed, or 1.0.0.
        epoch: devices refuse a lower one than they have confirmed; None: as the release before, or 0.
        target: which of a comparison's targets; empty: the recommended one.
        runtime: one that answers the golden prompts; empty: the first that is installed.
        replace: path in the release → file: a light release on top of the bundle `build`.
        adapter: LoRA file in GGUF: a release that lays it over the weights of the bundle `build`; also with `replace`.
        role: `release`, or `dev` for developers' devices.
        arch: processors that may take it; empty: any.
        license: SPDX expression.
        min_agent: least edgegen version on the device.
        health: when the release counts as worse; None: by the plan's budgets.
        more_keys: private keys that lie outside `keys`.

    Raises:
        ConfigError, VerificationError, TrustError, UnsupportedError, DeviceError: see `edgegen.errors`.
    """
    build = Path(build)
    base = read_manifest(build)[0] if replace or adapter else None
    if base is None and (build / BUNDLE).is_file():
        raise ConfigError(
            f"{build}: is a bundle already", hint="To change it, use --replace PATH=FILE or --adapter FILE."
        )
    folder = build if base else _one_target(build, target)
    name = name or (base.name if base else product_name(load_json(folder / "plan.json", Plan).model.source))
    before = _released(keys, name, role)
    previous = before[0] if before else None
    wanted = Wanted(
        name=name,
        version=version or next_version([manifest.version for _, manifest in before]),
        epoch=epoch if epoch is not None else previous[1].epoch if previous else base.epoch if base else 0,
        license=license,
        parent=previous[0] if previous else "",
        arch=arch,
        min_agent=min_agent,
        health=health,
        role=role,
    )
    place = Path(out) if out else Path("bundles") / f"{wanted.name}-{wanted.version}"
    packed: Packed
    if base:
        changes = {path: Path(file) for path, file in (replace or {}).items()}
        packed = pack_light(build, changes, place, wanted, adapter=Path(adapter) if adapter else None, runtime=runtime)
    else:
        packed = _pack(folder, place, wanted, runtime=runtime)
    about = packed.about
    if keys is not None:
        from edgegen.bundle.sign import sign_bundle

        about = sign_bundle(place, Path(keys), more=more_keys)
    older = [manifest for digest, manifest in before if digest != about.digest]
    return Release(
        folder=place,
        bundle=about,
        manifest=packed.manifest,
        previous=older[0].version if older else "",
        transfer=transfer(packed.manifest, older[:1]) if older else None,
        notes=packed.notes,
    )


def product_name(source: str) -> str:
    """A model's folder or hub id as a product's name."""
    plain = unicodedata.normalize("NFKD", source.rstrip("/").rpartition("/")[2]).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")[:64].strip("-") or "model"


def next_version(versions: list[str]) -> str:
    """One minor step after the newest of some semantic versions; 1.0.0 after none."""
    numbers = [
        tuple(int(part) for part in version.partition("-")[0].partition("+")[0].split(".")) for version in versions
    ]
    if not numbers:
        return "1.0.0"
    major, minor, _ = max(numbers)
    return f"{major}.{minor + 1}.0"


def _one_target(build: Path, target: str) -> Path:
    """The output's folder of one target."""
    artifact = find_artifact(build, target)
    if artifact.name != "artifact":
        raise ConfigError(
            f"{build}: an artifact alone cannot be packed: its plan and report are missing",
            hint="Give the folder that `edgegen compress` wrote.",
        )
    return artifact.parent


def _released(keys: str | Path | None, name: str, role: str) -> list[tuple[str, Manifest]]:
    if keys is None:
        return []
    from edgegen.bundle.sign import released

    return released(Path(keys), name, role)
