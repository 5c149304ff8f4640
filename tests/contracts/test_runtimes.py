"""What every registered runtime must do, on an artifact that the same target's exporter wrote."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgegen.errors import ConfigError, DeviceError, UnsupportedError
from edgegen.export import EXPORTERS
from edgegen.records.artifact import Artifact
from edgegen.records.plan import Settings
from edgegen.runtime.base import Session
from edgegen.runtime.registry import RUNTIMES, runtime_for
from tests.tiny_models import make_tiny, pack_uniform, sample_texts

TARGETS = sorted(set(RUNTIMES) & set(EXPORTERS))
SETTINGS = Settings(context_tokens=96, ubatch_tokens=16, threads=1, kv_type="f16")
IDS = [int(i) for i in np.random.default_rng(4).integers(3, 390, 50)]


@pytest.fixture(scope="module", params=TARGETS)
def target(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(target: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    hf = make_tiny("llama", folder / "hf", tied=True)
    compressed = pack_uniform(hf, folder / "c", "f16")
    artifact: Artifact = EXPORTERS[target](compressed, folder / "a", SETTINGS, prove_texts=sample_texts(5))
    return folder / "a" / artifact.model


@pytest.fixture
def session(target: str, model: Path) -> Iterator[Session]:
    opened = runtime_for(target).open(model, SETTINGS)
    yield opened
    opened.close()


def test_version_and_name(target: str) -> None:
    assert runtime_for(target).version()
    assert runtime_for(target).name


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


def test_score_does_not_depend_on_the_batch(target: str, model: Path, session: Session) -> None:
    other = runtime_for(target).open(model, Settings(context_tokens=96, ubatch_tokens=96, threads=1, kv_type="f16"))
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


def test_time_generation(session: Session) -> None:
    timing = session.time_generation(IDS, decode_tokens=7)
    assert (timing.prompt_tokens, timing.decoded_tokens) == (50, 7)
    assert timing.prefill_s > 0
    assert timing.decode_s > 0


@pytest.mark.parametrize("ids", [[400], [-1], [5] * 97, []])
def test_wrong_tokens_are_refused_at_once(session: Session, ids: list[int]) -> None:
    for call in (
        lambda: session.score(ids),
        lambda: session.generate(ids, max_tokens=1),
        lambda: session.time_generation(ids, decode_tokens=1),
    ):
        with pytest.raises(ConfigError):
            call()
    assert session.score(IDS).shape == (50, 400)


def test_timing_must_fit_the_context(session: Session) -> None:
    with pytest.raises(ConfigError):
        session.time_generation(IDS, decode_tokens=47)


def test_close_twice(target: str, model: Path) -> None:
    opened = runtime_for(target).open(model, SETTINGS)
    opened.close()
    opened.close()
    with pytest.raises(ConfigError):
        opened.score(IDS)


def test_damaged_file_says_why(target: str, model: Path, tmp_path: Path) -> None:
    data = model.read_bytes()
    for name, content in (("cut", data[: len(data) // 2]), ("noise", b"noise" * 1000), ("empty", b"")):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(DeviceError) as caught:
            runtime_for(target).open(path, SETTINGS)
        assert len(str(caught.value)) > len(str(path)) + 40


def test_missing_file(target: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        runtime_for(target).open(tmp_path / "nothing", SETTINGS)


def test_unknown_target() -> None:
    with pytest.raises(UnsupportedError):
        runtime_for("tape")
