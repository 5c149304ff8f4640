"""What the planner learns from, read out of a filled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from edgegen.errors import ConfigError
from edgegen.fleet.operations import operation
from edgegen.records.bundle import Manifest, Provenance
from edgegen.records.learning import Missing, Observations, Trace
from edgegen.records.plan import Terms
from tests.fleet.reported import Store
from tests.fleet.site import manifest_bytes

NOW = 1_000_000.0
TERMS = Terms(
    layers=2,
    read_bytes=1e6,
    weights={"q8_0": 1_000_000},
    prompt_weights={"q8_0": 900_000},
    cached_numbers=0.0,
    model_bytes=1_100_000,
    rss_bytes=6e7,
)


def manifest(version: str, **changes: Any) -> Manifest:
    origin = Provenance(
        model="org/tiny",
        model_digest="sha256:" + "1" * 64,
        data_digest="sha256:" + "2" * 64,
        plan_digest="sha256:" + "3" * 64,
        lineage="sha256:" + "4" * 64,
        profile="raspberry-pi-4-4gb",
        terms=TERMS,
    )
    return msgspec.json.decode(manifest_bytes(version, provenance=origin, **changes), type=Manifest)


@pytest.fixture
def filled(store: str) -> Iterator[Store]:
    found = Store(store)
    yield found
    found.close()


def do(filled: Store, name: str, **asked: Any) -> Any:
    found = operation(name)
    with filled.database.transaction() as tx:
        result = found.run(tx, NOW, "operator:test", found.asks(**asked))
    # As it comes over HTTP.
    return msgspec.json.decode(msgspec.json.encode(result), type=found.gives)


def test_medians_of_each_device_and_release(filled: Store) -> None:
    first, second = filled.release(manifest("1.0.0")), filled.release(manifest("1.1.0"))
    filled.device("pi-1", profile="raspberry-pi-4-4gb")
    filled.device("pi-2")
    for speed in (10.0, 11.0, 90.0):
        filled.generation("pi-1", first, NOW - 50, tokens_per_s=speed, ttft_s=1.0, peak_rss_bytes=5_000_000)
    filled.generation("pi-1", first, NOW - 40, tokens_per_s=1.0, throttled=1)
    filled.generation("pi-1", first, NOW - 40, tokens_per_s=500.0, answer_tokens=2, ttft_s=9.0, prompt_tokens=3)
    filled.generation("pi-1", first, NOW - 40, tokens_per_s=500.0, error="out of memory", stop="error")
    filled.generation("pi-1", first, NOW - 100 * 86400, tokens_per_s=500.0)
    filled.generation("pi-2", second, NOW - 10, tokens_per_s=20.0, threads=None)
    for load in (2.0, 2.0, 4.0, None):
        filled.health("pi-1", first, NOW - 60, load_s=load)
    found: Observations = do(filled, "observations")
    one, two = found.rows
    assert (one.device, one.release, one.profile, one.threads) == ("pi-1", first, "raspberry-pi-4-4gb", 1)
    assert (one.answers, one.throttled, one.speed_answers, one.tokens_per_s) == (4, 1, 3, 11.0)
    assert (one.first_answers, one.ttft_s, one.prompt_tokens) == (3, 1.0, 64.0)
    assert (one.peak_rss_bytes, one.loads, one.load_s) == (5_000_000, 2, 3.0)
    assert (two.device, two.profile, two.threads, two.tokens_per_s, two.load_s) == ("pi-2", "", None, 20.0, None)
    assert {r.label for r in found.releases} == {"kitchen@1.0.0", "kitchen@1.1.0"}
    assert all(r.terms == TERMS and r.profile == "raspberry-pi-4-4gb" and r.lineage for r in found.releases)


def test_only_the_latest_of_a_talkative_device_and_only_of_the_group(filled: Store) -> None:
    release = filled.release(manifest("1.0.0"))
    filled.device("pi-1")
    filled.device("pi-2", group="other")
    filled.device("pi-3", revoked=1)
    for number in range(30):
        filled.generation("pi-1", release, NOW - 100 + number, tokens_per_s=1.0 + number)
    filled.generation("pi-2", release, NOW - 1, tokens_per_s=5.0)
    filled.generation("pi-3", release, NOW - 1, tokens_per_s=5.0)
    assert [row.device for row in do(filled, "observations").rows] == ["pi-1", "pi-2"]
    (one,) = do(filled, "observations", group="pilot", each=5).rows
    assert (one.device, one.answers, one.tokens_per_s) == ("pi-1", 5, 28.0)


def test_an_unknown_release_and_one_without_terms_are_told_as_such(filled: Store) -> None:
    plain = filled.release(msgspec.structs.replace(manifest("1.0.0"), provenance=None))
    filled.device("pi-1")
    filled.generation("pi-1", plain, NOW, tokens_per_s=1.0)
    filled.generation("pi-1", "sha256:" + "9" * 64, NOW, tokens_per_s=1.0)
    found: Observations = do(filled, "observations")
    assert len(found.rows) == 2
    (release,) = found.releases
    assert release.terms is None and release.profile == ""


def test_characters_that_took_bytes(filled: Store) -> None:
    common, rare = filled.release(manifest("1.0.0")), filled.release(manifest("1.1.0"))
    filled.device("pi-1")
    for _ in range(3):
        filled.generation("pi-1", common, NOW, byte_fraction=0.25, missing='{"ß": 2, "\\u001b": 5, "long": 3, "é": -4}')
    filled.generation("pi-1", common, NOW, byte_fraction=0.05, missing="not JSON")
    filled.generation("pi-1", common, NOW)
    filled.generation("pi-1", rare, NOW, byte_fraction=0.0)
    found: Missing = do(filled, "missing")
    assert (found.label, found.answers, found.characters) == ("kitchen@1.0.0", 4, {"ß": 6})
    assert found.byte_fraction == pytest.approx(0.2)
    assert found.model == "org/tiny"
    assert do(filled, "missing", release="kitchen@1.1.0").characters == {}
    with pytest.raises(ConfigError, match="no releases are called"):
        do(filled, "missing", release="kitchen@9.9.9")


def test_missing_of_an_empty_store(filled: Store) -> None:
    found: Missing = do(filled, "missing")
    assert (found.release, found.answers, found.byte_fraction) == ("", 0, None)


@pytest.mark.parametrize("what", ["4444444444", "sha256:" + "4" * 64, "kitchen@1.0.0", "pi-1", "gen-1"])
def test_a_trace_leads_from_anything_to_the_model(filled: Store, what: str) -> None:
    release = filled.release(manifest("1.0.0"))
    filled.device("pi-1", running=release)
    filled.generation("pi-1", release, NOW)
    (found,) = do(filled, "trace", what=what)
    assert found == Trace(
        lineage="sha256:" + "4" * 64,
        model="org/tiny",
        model_digest="sha256:" + "1" * 64,
        data_digest="sha256:" + "2" * 64,
        plan_digest="sha256:" + "3" * 64,
        profile="raspberry-pi-4-4gb",
        release=release,
        label="kitchen@1.0.0",
        parent="",
        devices=("pi-1",),
        answers=1,
    )


def test_a_trace_of_nothing_is_refused(filled: Store) -> None:
    filled.release(manifest("1.0.0"))
    for what in ("", "4", "nobody", "kitchen@2.0.0"):
        with pytest.raises(ConfigError, match="no releases are called"):
            do(filled, "trace", what=what)
