"""What every registered exporter must do."""

from pathlib import Path

import pytest

from edgegen.common.codec import load_json
from edgegen.common.files import digest_file
from edgegen.errors import ConfigError
from edgegen.export import EXPORTERS, exporter_for
from edgegen.records.artifact import Artifact
from edgegen.records.plan import Settings
from tests.tiny_models import make_tiny, pack_uniform, sample_texts

SETTINGS = Settings(context_tokens=96, ubatch_tokens=16, threads=1, kv_type="f16")
TEXTS = sample_texts(5)


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return pack_uniform(make_tiny("llama", folder / "hf", tied=True), folder / "c", "f16")


@pytest.mark.parametrize("target", sorted(EXPORTERS))
def test_artifact_tells_the_truth(target: str, compressed: Path, tmp_path: Path) -> None:
    artifact = exporter_for(target)(compressed, tmp_path / "a", SETTINGS, prove_texts=TEXTS)
    assert load_json(tmp_path / "a" / "artifact.json", Artifact) == artifact
    assert artifact.target == target
    assert artifact.settings == SETTINGS
    assert artifact.model in {file.path for file in artifact.files}
    assert "tokenizer.json" in {file.path for file in artifact.files}
    assert artifact.parent == digest_file(compressed / "weights.bin")
    for file in artifact.files:
        assert (tmp_path / "a" / file.path).stat().st_size == file.bytes
        assert digest_file(tmp_path / "a" / file.path) == file.digest


@pytest.mark.parametrize("target", sorted(EXPORTERS))
def test_same_input_same_bytes(target: str, compressed: Path, tmp_path: Path) -> None:
    first = exporter_for(target)(compressed, tmp_path / "a", SETTINGS, prove_texts=TEXTS)
    assert exporter_for(target)(compressed, tmp_path / "b", SETTINGS, prove_texts=TEXTS) == first


@pytest.mark.parametrize("target", sorted(EXPORTERS))
def test_nothing_is_left_of_a_failure(target: str, compressed: Path, tmp_path: Path) -> None:
    def fail(_: str, __: float) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        exporter_for(target)(compressed, tmp_path / "a", SETTINGS, prove_texts=TEXTS, progress=fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", sorted(EXPORTERS))
def test_empty_folder_is_refused(target: str, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    with pytest.raises(ConfigError, match="no such file"):
        exporter_for(target)(tmp_path / "c", tmp_path / "a", SETTINGS, prove_texts=TEXTS)
