"""Whether this device may take a release: its epoch, and what the device is.

A signed release is not yet a suitable one. Everything here is decided before a byte of weights is fetched.
"""

from __future__ import annotations

import msgspec
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from edgegen.errors import Fault, TrustError, UnsupportedError
from edgegen.records.bundle import BundleFile, Manifest
from edgegen.runtime.adapters import TAKE_ADAPTERS


class Facts(msgspec.Struct, frozen=True):
    """What a device is."""

    arch: str
    """`aarch64`, `x86_64`."""
    ram_bytes: int
    runtimes: dict[str, str]
    """Runtime → version of those that are installed."""
    agent: str
    """edgegen's version."""
    epoch: int = 0
    """Highest that was confirmed here."""


def require_epoch(manifest: Manifest, facts: Facts) -> None:
    """Refuse what is older than what was confirmed. Older versions of the same epoch may return.

    Raises:
        TrustError: a lower epoch; the fault is `downgrade`.
    """
    if manifest.epoch < facts.epoch:
        raise TrustError(
            f"{manifest.name} {manifest.version}: its epoch {manifest.epoch} is below {facts.epoch}, "
            "which this device has confirmed",
            hint="Pack the old model again with the present --epoch if it is to come back.",
            fault=Fault.DOWNGRADE,
        )


def choose_runtime(manifest: Manifest, facts: Facts) -> str:
    """The runtime that this device opens a release with: the first that it has.

    Raises:
        UnsupportedError: another processor, too little memory, no runtime or an unfit version of it, an agent too old.
    """
    compat, what = manifest.compat, f"{manifest.name} {manifest.version}"
    if compat.arch and facts.arch not in compat.arch:
        raise UnsupportedError(f"{what}: made for {', '.join(compat.arch)}, and this device is {facts.arch}")
    if compat.min_ram_bytes > facts.ram_bytes:
        raise UnsupportedError(
            f"{what}: needs {compat.min_ram_bytes:,} bytes of memory, and this device has {facts.ram_bytes:,}"
        )
    if compat.min_agent and _version(facts.agent, what) < _version(compat.min_agent, what):
        raise UnsupportedError(
            f"{what}: needs edgegen {compat.min_agent}, and this device has {facts.agent}",
            hint="Update edgegen on the device first.",
        )
    able = [name for name in compat.runtimes if manifest.kind != "adapter" or name in TAKE_ADAPTERS]
    if not able:
        raise UnsupportedError(
            f"{what}: an adapter for {', '.join(compat.runtimes)}, which this edgegen gives none",
            hint="Pack a full release with the adapter merged into its weights.",
        )
    installed = [name for name in able if name in facts.runtimes]
    if not installed:
        raise UnsupportedError(
            f"{what}: needs one of {', '.join(able)}",
            hint="Installed here: " + (", ".join(sorted(facts.runtimes)) or "none") + ".",
        )
    first = installed[0]
    if first == compat.runtimes[0] and not _fits(facts.runtimes[first], compat.runtime_versions, what):
        raise UnsupportedError(
            f"{what}: needs {first} {compat.runtime_versions}, and this device has {facts.runtimes[first]}",
            hint="Update the runtime on the device first.",
        )
    return first


def compose(manifest: Manifest, base: Manifest | None) -> tuple[BundleFile, ...]:
    """All files of a release's folder: a full release's own; a light one's over its base's.

    Args:
        base: the installed release that it refers to, itself composed of full files; None for a full release.

    Raises:
        UnsupportedError: it needs a base that is not given, or the base is no full release of its target.
        TrustError: it names a file that neither has, or changes weights; whoever signed it, a device must not follow.
    """
    if manifest.kind == "full":
        return manifest.files
    if base is None:
        raise UnsupportedError(
            f"{manifest.name} {manifest.version}: changes a release that is not installed here ({manifest.base})",
            hint="Install the base first, or pack a full release.",
        )
    require_full(base)
    if manifest.target != base.target:
        raise UnsupportedError(
            f"{manifest.name} {manifest.version}: for {manifest.target}, and its base is for {base.target}"
        )
    _check_light(manifest, base)
    own = {file.path: file for file in manifest.files}
    names = {file.path.casefold(): file.path for file in base.files}
    for path in own:
        if names.get(path.casefold(), path) != path:
            raise TrustError(
                f"{manifest.name} {manifest.version}: {path!r} differs from its base's file of this name in case only",
                fault=Fault.PATH,
            )
    kept = [own.pop(file.path, file) for file in base.files]
    return (*kept, *own.values())


def _check_light(manifest: Manifest, base: Manifest) -> None:
    """Refuse a change that is more than one: another model file, or other weights.

    Weights are what the runtime opens and what is cut into segments beside it.

    Raises:
        TrustError: it is.
    """
    what = f"{manifest.name} {manifest.version}"
    names = {file.path for file in base.files}
    if manifest.entry != base.entry or manifest.entry not in names:
        raise TrustError(
            f"{what}: entry: {manifest.entry!r} is not its base's model file {base.entry!r}", fault=Fault.MALFORMED
        )
    if manifest.adapter and manifest.adapter in names:
        raise TrustError(f"{what}: adapter: {manifest.adapter!r} is a file of its base", fault=Fault.MALFORMED)
    if manifest.adapter and manifest.adapter not in {file.path for file in manifest.files}:
        raise TrustError(f"{what}: adapter: {manifest.adapter!r} is not among its files", fault=Fault.MALFORMED)
    weights = {file.path for file in base.files if file.path == base.entry or _holds_tensors(file)}
    for file in manifest.files:
        if file.path in weights or (_holds_tensors(file) and file.path != manifest.adapter):
            raise TrustError(
                f"{what}: {file.path!r} holds weights, which a {manifest.kind} release cannot change",
                hint="Pack a full release.",
                fault=Fault.MALFORMED,
            )


def _holds_tensors(file: BundleFile) -> bool:
    return any(segment.name for segment in file.segments)


def require_full(base: Manifest) -> None:
    """Refuse to change a release that is itself a change to another one.

    Raises:
        UnsupportedError: it is.
    """
    if base.kind != "full":
        raise UnsupportedError(
            f"{base.name} {base.version}: is {'an adapter' if base.kind == 'adapter' else 'a light'} release, and only "
            f"full ones can be changed",
            hint=f"Name all changes together, on its base {base.base}: --replace PATH=FILE and --adapter FILE.",
        )


def _fits(version: str, specifier: str, what: str) -> bool:
    try:
        return not specifier or SpecifierSet(specifier, prereleases=True).contains(_version(version, what))
    except InvalidSpecifier as error:
        raise TrustError(f"{what}: runtime_versions: {specifier[:100]!r} is no version range") from error


def _version(text: str, what: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion as error:
        raise TrustError(f"{what}: {text[:100]!r} is no version") from error
