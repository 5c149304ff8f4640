"""What every registered exporter must do."""

from pathlib import Path

import pytest

from edgegen.common.codec import load_json
from edgegen.common.files import digest_file
from edgegen.errors import ConfigError
from edgegen.export import TARGETS
from edgegen.records.artifact import Artifact
from tests.contracts.targets import GRID, MARKS, context_settings, exporter_or_skip
from tests.tiny_models import make_tiny, pack_uniform, sample_texts

EVERY = pytest.mark.parametrize("target", [pytest.param(name, marks=MARKS.get(name, ())) for name in TARGETS])
TEXTS = sample_texts(5)


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return pack_uniform(make_tiny("llama", folder / "hf", tied=True), folder / "c", GRID)


@EVERY
def test_artifact_tells_the_truth(target: str, compressed: Path, tmp_path: Path) -> None:
    artifact = exporter_or_skip(target).export(compressed, tmp_path / "a", context_settings(target), prove_texts=TEXTS)
    assert load_json(tmp_path / "a" / "artifact.json", Artifact) == artifact
    assert artifact.target == target
    assert artifact.settings == context_settings(target)
    assert artifact.model in {file.path for file in artifact.files}
    assert "tokenizer.json" in {file.path for file in artifact.files}
    assert artifact.parent == digest_file(compressed / "weights.bin")
    for file in artifact.files:
        assert (tmp_path / "a" / file.path).stat().st_size == file.bytes
        assert digest_file(tmp_path / "a" / file.path) == file.digest


@EVERY
def test_same_input_same_bytes(target: str, compressed: Path, tmp_path: Path) -> None:
    first = exporter_or_skip(target).export(compressed, tmp_path / "a", context_settings(target), prove_texts=TEXTS)
    assert (
        exporter_or_skip(target).export(compressed, tmp_path / "b", context_settings(target), prove_texts=TEXTS)
        == first
    )


@EVERY
def test_nothing_is_left_of_a_failure(target: str, compressed: Path, tmp_path: Path) -> None:
    def fail(_: str, __: float) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        exporter_or_skip(target).export(
            compressed, tmp_path / "a", context_settings(target), prove_texts=TEXTS, progress=fail
        )
    assert list(tmp_path.iterdir()) == []


@EVERY
def test_empty_folder_is_refused(target: str, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    with pytest.raises(ConfigError, match="no such file"):
        exporter_or_skip(target).export(tmp_path / "c", tmp_path / "a", context_settings(target), prove_texts=TEXTS)
