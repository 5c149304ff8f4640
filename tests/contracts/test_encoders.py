"""What every registered runtime of encoders must do, on an artifact that the same target's exporter wrote."""

import functools
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgegen.errors import ConfigError, DeviceError, UnsupportedError
from edgegen.records.plan import Settings
from edgegen.runtime.base import EncoderRuntime, EncoderSession
from edgegen.runtime.registry import ENCODER_RUNTIMES, encoder_runtime_for
from tests.contracts.targets import GRID, MARKS, context_settings, exporter_or_skip
from tests.export.test_onnx_encoder import pack
from tests.tiny_models import make_tiny_encoder, sample_texts

IDS = [2, *(int(i) for i in np.random.default_rng(4).integers(5, 250, 30)), 3]
PAIRS = [
    pytest.param((target, name), id=f"{target}-{name}", marks=MARKS.get(target, ()))
    for target, runtimes in ENCODER_RUNTIMES.items()
    for name in runtimes
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> object:
    """Target → its artifact's model file, written when it is first asked for."""

    def write(target: str) -> Path:
        exporter, folder = exporter_or_skip(target), tmp_path_factory.mktemp(target)
        compressed = pack(make_tiny_encoder(folder / "hf", sentence_tokens=96), folder / "c", GRID)
        artifact = exporter.export(compressed, folder / "a", context_settings(target), prove_texts=sample_texts(5))
        return folder / "a" / artifact.model

    return functools.cache(write)


@pytest.fixture(scope="module", params=PAIRS)
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def runtime(pair: tuple[str, str]) -> EncoderRuntime:
    """The adapter; skipped where its library is not installed, as the registry says."""
    try:
        found = encoder_runtime_for(*pair)
        found.version()
    except (UnsupportedError, ModuleNotFoundError) as error:
        pytest.skip(str(error))
    return found


@pytest.fixture(scope="module")
def settings(pair: tuple[str, str]) -> Settings:
    return context_settings(pair[0])


@pytest.fixture(scope="module")
def model(pair: tuple[str, str], runtime: EncoderRuntime, exported: object) -> Path:
    return exported(pair[0])  # type: ignore[operator, no-any-return]


@pytest.fixture
def session(runtime: EncoderRuntime, model: Path, settings: Settings) -> Iterator[EncoderSession]:
    opened = runtime.open(model, settings)
    yield opened
    opened.close()


def test_name_and_sizes(pair: tuple[str, str], runtime: EncoderRuntime, session: EncoderSession) -> None:
    assert runtime.name == pair[1] and runtime.version()
    assert session.context_tokens == 96 and session.dimension == 64 and session.vocab_size > 200


def test_a_vector_is_its_own_and_of_length_1(session: EncoderSession) -> None:
    first = session.embed(IDS)
    kept = first.copy()
    other = session.embed(IDS[::-1])
    assert first.dtype == np.float32 and first.shape == (64,) and float(np.linalg.norm(first)) == pytest.approx(1)
    np.testing.assert_array_equal(first, kept)
    assert np.abs(first - other).max() > 1e-3


def test_nothing_is_left_of_the_text_before(session: EncoderSession) -> None:
    first = session.embed(IDS)
    session.embed((IDS * 3)[:96])
    session.embed(IDS[:2])
    np.testing.assert_array_equal(session.embed(IDS), first)


@pytest.mark.parametrize("length", [1, 2, 16, 17, 96])
def test_every_length_up_to_the_context(session: EncoderSession, length: int) -> None:
    assert np.isfinite(session.embed((IDS * 3)[:length])).all()


def test_measure(session: EncoderSession) -> None:
    timing = session.measure(IDS)
    assert (timing.prompt_tokens, timing.decoded_tokens, timing.decode_s) == (len(IDS), 0, 0.0)
    assert timing.prefill_s > 0


@pytest.mark.parametrize("ids", [[5000], [-1], [5] * 97, []])
def test_wrong_tokens_are_refused(session: EncoderSession, ids: list[int]) -> None:
    for call in (session.embed, session.measure):
        with pytest.raises(ConfigError):
            call(ids)
    assert session.embed(IDS).shape == (64,)


def test_close_twice(runtime: EncoderRuntime, model: Path, settings: Settings) -> None:
    opened = runtime.open(model, settings)
    opened.close()
    opened.close()
    with pytest.raises(ConfigError):
        opened.embed(IDS)


@pytest.mark.parametrize("harm", ["cut", "noise", "empty"])
def test_damaged_file_says_why(
    harm: str, runtime: EncoderRuntime, model: Path, settings: Settings, tmp_path: Path
) -> None:
    data = model.read_bytes()
    path = shutil.copytree(model.parent, tmp_path / "artifact") / model.name
    path.write_bytes({"cut": data[: len(data) // 2], "noise": b"noise" * 1000, "empty": b""}[harm])
    with pytest.raises(DeviceError) as caught:
        runtime.open(path, settings)
    assert len(str(caught.value)) > len(str(path)) + 20


def test_missing_file(runtime: EncoderRuntime, settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        runtime.open(tmp_path / "nothing", settings)


def test_threads_change_nothing(
    runtime: EncoderRuntime, model: Path, settings: Settings, session: EncoderSession
) -> None:
    with runtime.open(model, msgspec.structs.replace(settings, threads=2)) as other:
        np.testing.assert_allclose(other.embed(IDS), session.embed(IDS), atol=1e-5)


@pytest.mark.parametrize("change", [{"context_tokens": 0}, {"threads": 0}, {"kv_type": "q4_0"}])
def test_settings_are_checked(
    change: dict[str, object], runtime: EncoderRuntime, model: Path, settings: Settings
) -> None:
    with pytest.raises(ConfigError):
        runtime.open(model, msgspec.structs.replace(settings, **change))


def test_context_beyond_the_model(runtime: EncoderRuntime, model: Path, settings: Settings) -> None:
    with pytest.raises(ConfigError, match="made for 96 tokens"):
        runtime.open(model, msgspec.structs.replace(settings, context_tokens=97))
