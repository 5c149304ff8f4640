"""A learned profile on disk: written, said, taken back."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgegen.catalog import forget_learned, learned_notes, load_profile, save_user_profile, unlearned
from edgegen.catalog.learned import with_numbers
from edgegen.errors import ConfigError
from edgegen.records.profile import Before, Learned, Number, Profile

NAME = "raspberry-pi-4-4gb"
KEYS = (
    "device.bandwidth_bytes_per_s",
    "kernel_ns_per_weight.q8_0",
    "prefill_ns_per_weight.q8_0",
    "overhead_s_per_layer_token.gguf",
    "attention_s_per_cached_number.litert",
    "rss_offset_bytes.gguf",
    "load_bytes_per_s.gguf",
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEGEN_HOME", str(tmp_path))
    return tmp_path


def learned(profile: Profile) -> Profile:
    numbers = {key: Number(-3e6 if "rss" in key else 0.5, "learned", "from 9 reports") for key in KEYS}
    own = profile.device.bandwidth_bytes_per_s
    record = Learned(
        reports=1204,
        devices=12,
        releases=3,
        since="2026-01-01",
        until="2026-02-01",
        speed_error_before=0.31,
        speed_error=0.06,
        before=tuple(Before(key, own if key.startswith("device") else None) for key in KEYS),
    )
    return msgspec.structs.replace(with_numbers(profile, dict(numbers)), learned=record)


def test_it_is_read_back_as_it_was_written_and_says_where_it_is_from() -> None:
    profile = learned(load_profile(NAME))
    save_user_profile(profile)
    assert load_profile(NAME) == profile
    assert learned_notes(profile) == (
        "coefficients of raspberry-pi-4-4gb from 1,204 reports of 12 devices: tok/s error 31 % → 6 %",
    )
    assert learned_notes(unlearned(profile)) == ()


def test_taking_back_leaves_the_shipped_profile() -> None:
    shipped = load_profile(NAME)
    path = save_user_profile(learned(shipped))
    assert unlearned(load_profile(NAME)) == shipped
    assert forget_learned(NAME) == path
    assert not path.exists() and load_profile(NAME) == shipped
    with pytest.raises(ConfigError, match="nothing was learned"):
        forget_learned(NAME)


def test_taking_back_keeps_a_profile_of_ones_own() -> None:
    own = msgspec.structs.replace(load_profile(NAME), name="my-board", title="Mine")
    path = save_user_profile(learned(own))
    forget_learned("my-board")
    assert path.is_file() and load_profile("my-board") == own


def test_numbers_that_cannot_be_are_refused() -> None:
    profile = load_profile(NAME)
    for key, value in (
        ("rss_offset_bytes.gguf", 1e15),
        ("load_bytes_per_s.gguf", 0.0),
        ("kernel_ns_per_weight.x", -1.0),
    ):
        with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
            save_user_profile(with_numbers(profile, {key: Number(value, "learned")}))
    with pytest.raises(ConfigError, match="no number that can be learned"):
        with_numbers(profile, {"device.cores": Number(1.0, "learned")})
