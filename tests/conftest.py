"""What every test runs under: no network, no user's settings, one thread; and one finished output that many share."""

import os
import tempfile

# Before torch and the Hugging Face libraries are imported, because they read these once.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",
    EDGEGEN_HOME=tempfile.mkdtemp(prefix="edgegen-test-home-"),
)

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def _home() -> Iterator[None]:
    yield
    shutil.rmtree(os.environ["EDGEGEN_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied random Llama of two blocks. Not to be changed."""
    from tests.tiny_models import make_tiny

    return make_tiny("llama", tmp_path_factory.mktemp("checkpoint") / "llama", tied=True)


@pytest.fixture(scope="session")
def calm_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, but one that rounding does not upset: it can pass its receipt. Not to be changed."""
    from tests.flows.command import make_calm

    return make_calm("llama", tmp_path_factory.mktemp("checkpoint") / "calm", tied=True)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 rows of text."""
    from tests.tiny_models import sample_texts

    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in sample_texts(48, seed=9)))
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, calm_llama: Path, tiny_data: Path) -> Path:
    """A finished, passing output for `calm_llama`, made by the command line. Not to be changed: copy it."""
    from tests.flows.command import LOOSE, run_cli

    out = tmp_path_factory.mktemp("finished") / "out"
    done = run_cli("compress", calm_llama, "--data", tiny_data, "--out", out, *LOOSE)
    assert done.code == 0, done.err
    return out


@pytest.fixture
def finished_copy(finished: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return shutil.copytree(finished, tmp_path / "copy")
