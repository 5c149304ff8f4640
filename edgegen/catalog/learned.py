"""What `edgegen learn` did to a profile: said in one line, and taken back.

A learned profile keeps each number that was changed as it was before, so that learning always starts from the
profile's own numbers, never from learned ones, and can be undone whatever the profile was made of.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgegen.catalog.load import load_profile, save_user_profile
from edgegen.catalog.locate import shipped_folder, user_folder
from edgegen.errors import ConfigError
from edgegen.records.profile import Number, Profile

TABLES = (
    "kernel_ns_per_weight",
    "prefill_ns_per_weight",
    "overhead_s_per_layer_token",
    "attention_s_per_cached_number",
    "rss_offset_bytes",
    "load_bytes_per_s",
)
_BANDWIDTH = "device.bandwidth_bytes_per_s"


def learned_notes(profile: Profile) -> tuple[str, ...]:
    """One line on where a profile's coefficients come from; none where nothing was learned."""
    learned = profile.learned
    if learned is None:
        return ()
    devices = f"{learned.devices} device" + ("" if learned.devices == 1 else "s")
    return (
        f"coefficients of {profile.name} from {learned.reports:,} reports of {devices}: tok/s error "
        f"{learned.speed_error_before:.0%} → {learned.speed_error:.0%}".replace("%", " %"),
    )


def number_at(profile: Profile, key: str) -> Number | None:
    """The number at a key as `Before` names it; None where there is none.

    Raises:
        ConfigError: no such place.
    """
    if key == _BANDWIDTH:
        return profile.device.bandwidth_bytes_per_s
    table, _, entry = key.partition(".")
    if table not in TABLES:
        raise ConfigError(f"profile {profile.name}: {key!r} is no number that can be learned")
    found: dict[str, Number] = getattr(profile, table)
    return found.get(entry)


def with_numbers(profile: Profile, numbers: dict[str, Number | None]) -> Profile:
    """The profile with other numbers at some keys; None takes one out."""
    changes: dict[str, dict[str, Number]] = {}
    device = profile.device
    for key, number in numbers.items():
        number_at(profile, key)
        if key == _BANDWIDTH:
            device = msgspec.structs.replace(device, bandwidth_bytes_per_s=number)
            continue
        table, _, entry = key.partition(".")
        kept = changes.setdefault(table, dict(getattr(profile, table)))
        if number is None:
            kept.pop(entry, None)
        else:
            kept[entry] = number
    return msgspec.structs.replace(profile, device=device, **changes)


def unlearned(profile: Profile) -> Profile:
    """The profile as it was before anything was learned."""
    if profile.learned is None:
        return profile
    before = {item.key: item.number for item in profile.learned.before}
    return msgspec.structs.replace(with_numbers(profile, before), learned=None)


def forget_learned(name: str) -> Path:
    """Take back what was learned: the user's file is gone if a shipped profile is all that is left of it.

    Returns:
        The user's file.

    Raises:
        ConfigError: no such profile, or nothing was learned.
    """
    profile = load_profile(name)
    if profile.learned is None:
        raise ConfigError(f"profile {profile.name}: nothing was learned")
    path = user_folder() / "profiles" / f"{profile.name}.toml"
    old = unlearned(profile)
    shipped = shipped_folder("profiles") / f"{profile.name}.toml"
    if shipped.is_file() and load_profile(shipped) == old:
        path.unlink(missing_ok=True)
        return path
    return save_user_profile(old)
