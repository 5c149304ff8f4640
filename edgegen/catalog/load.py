"""Read profiles and targets, and check what types cannot: signs, ranges, names, versions.

Every refusal is a `ConfigError` that names the file and the key and says what to do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edgegen.catalog.locate import Kind, files_of, is_path, user_folder
from edgegen.catalog.machine import THIS_MACHINE
from edgegen.common.codec import did_you_mean, load_toml
from edgegen.common.files import write_text
from edgegen.errors import ConfigError
from edgegen.records.profile import Number, Profile
from edgegen.records.target import Target

SCHEMA = 1
"""The newest version of both files that this edgegen reads."""

ARCHES = ("aarch64", "x86_64")
ISAS = ("neon-inorder", "neon", "neon-dotprod", "neon-i8mm", "avx2", "avx512-vnni")

POSITIVE_TABLES = (
    "kernel_ns_per_weight",
    "prefill_ns_per_weight",
    "overhead_s_per_layer_token",
    "attention_s_per_cached_number",
    "load_bytes_per_s",
)
"""A profile's tables of numbers that are all above 0."""

Kept = TypeVar("Kept", Profile, Target)


def load_profile(name_or_path: str | Path) -> Profile:
    """Read one profile by name or path.

    Raises:
        ConfigError: no such profile (with the nearest name), or its file is wrong.
    """
    return _read(_find("profiles", name_or_path), Profile)


def load_target(name_or_path: str | Path) -> Target:
    """Read one target by name or path.

    Raises:
        ConfigError: no such target (with the nearest name), or its file is wrong.
    """
    return _read(_find("targets", name_or_path), Target)


def list_profiles() -> tuple[Profile, ...]:
    """All profiles, sorted by name; the user's own override shipped ones.

    Raises:
        ConfigError: one of the files is wrong.
    """
    return tuple(_read(path, Profile) for path in files_of("profiles").values())


def list_targets() -> tuple[Target, ...]:
    """All targets, sorted by name.

    Raises:
        ConfigError: one of the files is wrong.
    """
    return tuple(_read(path, Target) for path in files_of("targets").values())


def save_user_profile(profile: Profile) -> Path:
    """Write a profile to the user's folder, whole or not at all, and return its path.

    Raises:
        ConfigError: the profile would not be read back, or the folder is not writable.
        DeviceError: the disk is full.
    """
    path = user_folder() / "profiles" / f"{profile.name}.toml"
    if is_path(profile.name) or not profile.name:
        raise ConfigError(f"profile name {profile.name!r} is not a file name", hint="Use letters, digits and dashes.")
    _check_profile(profile, str(path))
    write_text(path, encode_toml(profile))
    return path


_LEFT_OUT_IF_EMPTY = frozenset({"note", "notes", "cpu_model"})


def encode_toml(record: Profile | Target) -> str:
    """A record as TOML in the shipped files' layout: plain values, then tables, sourced numbers inline."""
    tree = {key: value for key, value in msgspec.to_builtins(record).items() if _is_said(key, value)}
    plain = {key: value for key, value in tree.items() if not _is_table(value)}
    lines = [f"{key} = {_toml(value)}" for key, value in plain.items()]
    for key, value in tree.items():
        if isinstance(value, dict) and _is_table(value):
            lines += [
                "",
                f"[{key}]",
                *(f"{name} = {_toml(item)}" for name, item in value.items() if _is_said(name, item)),
            ]
        elif key not in plain:
            for row in value:
                lines += ["", f"[[{key}]]", *(f"{name} = {_toml(item)}" for name, item in row.items())]
    return "\n".join(lines) + "\n"


def _is_said(key: str, value: Any) -> bool:
    return value is not None and not (value == "" and key in _LEFT_OUT_IF_EMPTY)


def _is_table(value: Any) -> bool:
    if isinstance(value, dict):
        return "value" not in value
    return isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], dict)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        inside = ", ".join(f"{key} = {_toml(item)}" for key, item in value.items() if _is_said(key, item))
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    # JSON's strings, booleans and whole numbers are TOML's too; fractions need Python's shortest form.
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, float) else repr(value)


def _find(kind: Kind, name_or_path: str | Path) -> Path:
    if is_path(name_or_path):
        return Path(name_or_path).expanduser()
    name = str(name_or_path)
    known = files_of(kind)
    if name in known:
        return known[name]
    if kind == "profiles" and name == THIS_MACHINE:
        raise ConfigError(
            "this machine has not been measured yet",
            hint="Run `edgegen profiles probe` once; it takes half a minute.",
        )
    raise ConfigError(f"no {kind.removesuffix('s')} is called {name!r}", hint=did_you_mean(name, list(known)))


def _read(path: Path, kind: type[Kept]) -> Kept:
    record = load_toml(path, kind)
    where = str(path)
    if not 1 <= record.schema <= SCHEMA:
        raise ConfigError(
            f"{where}: schema: {record.schema} is not supported",
            hint=f"Use schema = {SCHEMA} or a newer edgegen.",
        )
    if record.name != path.stem:
        raise ConfigError(
            f"{where}: name: {record.name!r} is not the file's name",
            hint=f"Write name = {path.stem!r} or rename it.",
        )
    if isinstance(record, Profile):
        _check_profile(record, where)
    else:
        _check_target(record, where)
    return record


def _check_profile(profile: Profile, where: str) -> None:
    device, budgets = profile.device, profile.budgets
    for key, word, known in (("arch", device.arch, ARCHES), ("isa", device.isa, ISAS)):
        if word not in known:
            raise ConfigError(f"{where}: device.{key}: {word!r} is unknown", hint=did_you_mean(word, list(known)))
    _positive(where, "device.cores", device.cores)
    for key, number in _numbers(profile):
        _positive(where, key, number.value)
    for target, offset in profile.rss_offset_bytes.items():
        if not abs(offset.value) < device.ram_bytes.value:
            raise ConfigError(
                f"{where}: rss_offset_bytes.{target}: {offset.value} is no part of the device's memory",
                hint="Leave it out for 0.",
            )
    for name, limit in msgspec.to_builtins(budgets).items():
        if limit is not None:
            _positive(where, f"budgets.{name}", limit, hint="Leave the key out for no limit.")
    for name, count in msgspec.to_builtins(profile.workload).items():
        if isinstance(count, int) and (name != "threads" or count):
            _positive(where, f"workload.{name}", count)
    work = profile.workload
    if work.prompt_tokens + work.decode_tokens > work.context_tokens:
        raise ConfigError(
            f"{where}: workload.context_tokens: {work.context_tokens} cannot hold prompt and answer",
            hint="Make it at least prompt_tokens + decode_tokens.",
        )
    for name, limit, room in (
        ("max_bytes", budgets.max_bytes, device.storage_bytes),
        ("max_rss_bytes", budgets.max_rss_bytes, device.ram_bytes),
    ):
        if limit is not None and limit > room.value:
            raise ConfigError(
                f"{where}: budgets.{name}: {limit:,} is more than the device has ({room.value:,.0f})",
                hint="Lower it; the system and the product need room too.",
            )
    if not profile.targets:
        raise ConfigError(f"{where}: targets: is empty", hint="Name at least one runtime, such as gguf.")


def _check_target(target: Target, where: str) -> None:
    names = target.grid_names
    if not names:
        raise ConfigError(f"{where}: grids: there are none", hint="Add a [[grids]] table for each number grid.")
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{where}: grids: {name!r} is there twice", hint="Remove one of the two tables.")
    for grid in target.grids:
        _positive(where, f"grids.{grid.name}.block", grid.block)
        _positive(where, f"grids.{grid.name}.bits_per_weight", grid.bits_per_weight)
        _positive(where, f"grids.{grid.name}.resident_ratio", grid.resident_ratio)
        _positive(where, f"grids.{grid.name}.read_ratio", grid.read_ratio)
        for costs in (grid.cycles_per_weight, grid.prefill_cycles_per_weight):
            for isa, cycles in costs.items():
                _positive(where, f"grids.{grid.name}.{isa}", cycles)
    for name, bits in target.kv_bits.items():
        _positive(where, f"kv_bits.{name}", bits)
    if not target.kv_bits:
        raise ConfigError(f"{where}: kv_bits: is empty", hint="Name at least the default cache type.")
    tables = {"overheads": target.overheads, "encoder_overheads": target.overheads_of("encoder")}
    for table, overheads in tables.items():
        for name, value in msgspec.to_builtins(overheads).items():
            if name != "source" and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{where}: {table}.{name}: {value} is below 0", hint="Write 0 for nothing.")
    _positive(where, "parity_max_kl", target.parity_max_kl)
    _positive(where, "strict_max_kl", target.strict_max_kl)
    fractions = {
        "parity_min_top1_fraction": target.parity_min_top1_fraction,
        **{f"{table}.weights_resident_fraction": o.weights_resident_fraction for table, o in tables.items()},
    }
    for key, fraction in fractions.items():
        if not 0 <= fraction <= 1:
            raise ConfigError(f"{where}: {key}: {fraction} is not a fraction", hint="Write a number from 0 to 1.")


def _numbers(profile: Profile) -> Iterator[tuple[str, Number]]:
    device = profile.device
    for name in ("clock_ghz", "ram_bytes", "storage_bytes", "bandwidth_bytes_per_s"):
        yield f"device.{name}", getattr(device, name)
    for key in POSITIVE_TABLES:
        for entry, number in getattr(profile, key).items():
            yield f"{key}.{entry}", number


def _positive(where: str, key: str, value: float, *, hint: str = "Write a number above 0.") -> None:
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{where}: {key}: {value} must be above 0", hint=hint)
