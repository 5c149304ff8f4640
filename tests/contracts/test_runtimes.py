"""What every registered runtime must do, on an artifact that the same target's exporter wrote."""

import functools
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgegen.errors import ConfigError, DeviceError, UnsupportedError
from edgegen.records.plan import Settings
from edgegen.runtime.adapters import TAKE_ADAPTERS, open_model
from edgegen.runtime.base import Runtime, Session
from edgegen.runtime.registry import RUNTIMES, runtime_for
from tests.contracts.targets import MARKS, context_settings, export_tiny_llama

IDS = [int(i) for i in np.random.default_rng(4).integers(3, 390, 50)]
PAIRS = [
    pytest.param((target, name), id=f"{target}-{name}", marks=MARKS.get(target, ()))
    for target, runtimes in RUNTIMES.items()
    for name in runtimes
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> object:
    """Target → its artifact, written when it is first asked for."""
    return functools.cache(lambda target: export_tiny_llama(target, tmp_path_factory.mktemp(target)))


@pytest.fixture(scope="module", params=PAIRS)
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def runtime(pair: tuple[str, str]) -> Runtime:
    """The adapter; skipped where its library is not installed, as the registry says."""
    try:
        found = runtime_for(*pair)
        found.version()
    except (UnsupportedError, ModuleNotFoundError) as error:
        pytest.skip(str(error))
    return found


@pytest.fixture(scope="module")
def settings(pair: tuple[str, str]) -> Settings:
    return context_settings(pair[0])


@pytest.fixture(scope="module")
def model(pair: tuple[str, str], runtime: Runtime, exported: object) -> Path:
    return exported(pair[0])  # type: ignore[operator, no-any-return]


@pytest.fixture
def session(runtime: Runtime, model: Path, settings: Settings) -> Iterator[Session]:
    opened = runtime.open(model, settings)
    yield opened
    opened.close()


def test_version_and_name(pair: tuple[str, str], runtime: Runtime) -> None:
    assert runtime.version()
    assert runtime.name == pair[1]


def test_sizes(session: Session) -> None:
    assert session.vocab_size == 400
    assert session.context_tokens == 96


def test_score_is_causal(session: Session) -> None:
    """Logits after a token depend on nothing behind it."""
    whole = session.score(IDS)
    assert whole.shape == (50, 400)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(session.score(IDS[:20]), whole[:20], atol=0.03)


def test_score_forgets_the_sequence_before(session: Session) -> None:
    first = session.score(IDS)
    session.score(IDS[::-1])
    np.testing.assert_array_equal(session.score(IDS), first)


def test_score_does_not_depend_on_the_batch(
    runtime: Runtime, model: Path, settings: Settings, session: Session
) -> None:
    other = runtime.open(model, msgspec.structs.replace(settings, ubatch_tokens=96))
    np.testing.assert_allclose(other.score(IDS), session.score(IDS), atol=0.03)
    other.close()


def test_greedy_takes_the_best_of_score(session: Session) -> None:
    made = list(session.generate(IDS, max_tokens=12))
    assert len(made) == 12
    logits = session.score(IDS + made)
    for step, token in enumerate(made):
        row = logits[len(IDS) - 1 + step]
        assert row[token] > row.max() - 0.03


def test_stop_ids_are_not_given(session: Session) -> None:
    made = list(session.generate(IDS, max_tokens=12))
    stop = made[5]
    assert list(session.generate(IDS, max_tokens=12, stop_ids=[stop])) == made[: made.index(stop)]
    assert list(session.generate(IDS, max_tokens=0)) == []


def test_measure(session: Session) -> None:
    timing = session.measure(IDS, decode_tokens=7)
    assert (timing.prompt_tokens, timing.decoded_tokens) == (50, 7)
    assert timing.prefill_s > 0
    assert timing.decode_s > 0


@pytest.mark.parametrize("ids", [[400], [-1], [5] * 97, []])
def test_wrong_tokens_are_refused_at_once(session: Session, ids: list[int]) -> None:
    for call in (
        lambda: session.score(ids),
        lambda: session.generate(ids, max_tokens=1),
        lambda: session.measure(ids, decode_tokens=1),
    ):
        with pytest.raises(ConfigError):
            call()
    assert session.score(IDS).shape == (50, 400)


def test_timing_must_fit_the_context(session: Session) -> None:
    with pytest.raises(ConfigError):
        session.measure(IDS, decode_tokens=47)


def test_close_twice(runtime: Runtime, model: Path, settings: Settings) -> None:
    opened = runtime.open(model, settings)
    opened.close()
    opened.close()
    with pytest.raises(ConfigError):
        opened.score(IDS)


@pytest.mark.parametrize("harm", ["cut", "short", "noise", "empty"])
def test_damaged_file_says_why(harm: str, runtime: Runtime, model: Path, settings: Settings, tmp_path: Path) -> None:
    data = model.read_bytes()
    path = shutil.copytree(model.parent, tmp_path / "artifact") / model.name
    harmed = {"cut": data[: len(data) // 2], "short": data[:-4096], "noise": b"noise" * 1000, "empty": b""}
    path.write_bytes(harmed[harm])
    with pytest.raises(DeviceError) as caught:
        runtime.open(path, settings)
    assert len(str(caught.value)) > len(str(path)) + 40


def test_missing_file(runtime: Runtime, settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        runtime.open(tmp_path / "nothing", settings)


def test_threads_are_those_that_were_asked_for(
    runtime: Runtime, model: Path, settings: Settings, session: Session
) -> None:
    """One or two: the numbers stay the same."""
    with runtime.open(model, msgspec.structs.replace(settings, threads=2)) as other:
        np.testing.assert_allclose(other.score(IDS), session.score(IDS), atol=0.03)


@pytest.mark.parametrize("change", [{"context_tokens": 0}, {"ubatch_tokens": 0}, {"threads": 0}, {"kv_type": "q4_0"}])
def test_settings_are_checked(change: dict[str, object], runtime: Runtime, model: Path, settings: Settings) -> None:
    with pytest.raises(ConfigError):
        runtime.open(model, msgspec.structs.replace(settings, **change))


def test_context_beyond_the_model(runtime: Runtime, model: Path, settings: Settings) -> None:
    with pytest.raises(ConfigError):
        runtime.open(model, msgspec.structs.replace(settings, context_tokens=100_000))


def test_generation_ends_where_the_context_does(session: Session) -> None:
    """The last token that fits is written, then it stops; a full context takes no more."""
    assert len(list(session.generate(IDS, max_tokens=1000))) == 96 - len(IDS) + 1
    session.start(IDS + IDS[:46])
    with pytest.raises(ConfigError, match="full"):
        session.step(5)


def test_prompt_as_long_as_the_context(session: Session) -> None:
    whole = (IDS * 2)[:96]
    assert session.score(whole).shape == (96, 400)
    assert len(list(session.generate(whole, max_tokens=5))) == 1


def test_an_adapter_is_taken_or_refused_in_one_line(
    runtime: Runtime, model: Path, settings: Settings, tmp_path: Path
) -> None:
    """Never passed over."""
    with open_model(runtime, model, settings, None) as session:
        assert session.vocab_size == 400
    (tmp_path / "lora.gguf").write_bytes(b"noise" * 100)
    wanted = DeviceError if runtime.name in TAKE_ADAPTERS else UnsupportedError
    with pytest.raises(wanted, match="adapter"):
        open_model(runtime, model, settings, tmp_path / "lora.gguf")


def test_runtimes_that_take_adapters_are_known() -> None:
    known = {name for runtimes in RUNTIMES.values() for name in runtimes}
    assert known >= TAKE_ADAPTERS


def test_unknown_target() -> None:
    with pytest.raises(UnsupportedError):
        runtime_for("tape")
