"""`--litertlm`: the file holds the artifact's own parts, passes in LiteRT-LM, and says so where that is not there."""

import importlib.util
import shutil
from pathlib import Path

import litert_lm_builder
import msgspec
import numpy as np
import pytest

from edgegen.common.codec import load_json
from edgegen.export.litert.container import add_container, read_sections
from edgegen.records.artifact import Artifact
from edgegen.records.report import Report
from edgegen.runtime.checks import settings_here
from edgegen.runtime.flatmodel import read_model
from edgegen.runtime.litertlm import CONTAINER_FILE, compare_answers, is_installed
from edgegen.runtime.registry import runtime_for
from edgegen.runtime.text import Text
from edgegen.sdk.output import measure_output
from edgegen.verify.litertlm import NOT_RUN
from tests.flows.command import LOOSE, make_calm, run_cli
from tests.tiny_models import sample_texts

pytestmark = pytest.mark.slow

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>"
    "{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
needs_engine = pytest.mark.skipif(not is_installed(), reason="LiteRT-LM is not installed: edgegen[litert-lm]")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """A passing output with a container. Not to be changed."""
    folder = tmp_path_factory.mktemp("packed")
    model = make_calm("llama", folder / "model", share=0.04, tied=True, chat_template=TEMPLATE)
    out = folder / "out"
    done = run_cli("compress", model, "--data", tiny_data, "--target", "litert", "--litertlm", "--out", out, *LOOSE)
    assert done.code == 0, done.err + done.out
    return out


def test_the_file_holds_the_artifacts_own_parts(packed: Path, tmp_path: Path) -> None:
    """Read with the format's own unpacker."""
    folder = packed / "artifact"
    artifact = load_json(folder / "artifact.json", Artifact)
    assert {file.path for file in artifact.files} == {path.name for path in folder.iterdir()} - {"artifact.json"}
    assert artifact.model_files == ("model.tflite",)
    assert artifact.model_bytes == (folder / "model.tflite").stat().st_size
    litert_lm_builder.unpack(str(folder / CONTAINER_FILE), str(tmp_path))
    names = sorted(path.suffix for path in tmp_path.iterdir())
    assert names.count(".tflite") == 1
    assert list(read_sections(folder / CONTAINER_FILE)) == ["LlmMetadataProto", "HF_Tokenizer_Zlib", "TFLiteModel"]
    assert read_sections(folder / CONTAINER_FILE)["HF_Tokenizer_Zlib"] == (folder / "tokenizer.json").read_bytes()
    (inside,) = tmp_path.glob("*.tflite")
    packed_model, own = read_model(inside), read_model(folder / "model.tflite")
    assert weights(packed_model) == weights(own)
    assert [name.decode() for name in signatures(packed_model)] == ["decode", f"prefill_{chunk(artifact)}"]
    inputs = {tensor.name.decode() for tensor in packed_model.signatureDefs[0].inputs}
    assert inputs == {"tokens", "input_pos", *(f"kv_cache_{kind}_{layer}" for kind in "kv" for layer in (0, 1))}


def weights(model: object) -> set[bytes]:
    """The contents of all buffers of a `ModelT`."""
    found = (buffer.data for buffer in model.buffers)  # type: ignore[attr-defined]
    return {np.asarray(data).tobytes() for data in found if data is not None and len(data) > 64}


def signatures(model: object) -> list[bytes]:
    """Names of a `ModelT`'s signatures, sorted."""
    return sorted(found.signatureKey for found in model.signatureDefs)  # type: ignore[attr-defined]


def chunk(artifact: Artifact) -> int:
    return min(artifact.settings.ubatch_tokens, artifact.context_tokens)


@needs_engine
def test_the_receipt_has_the_engines_answers(packed: Path) -> None:
    report = load_json(packed / "report.json", Report)
    (check,) = [check for check in report.checks if check.name == "litertlm"]
    assert check.passed, check.detail
    assert "8 of 8 greedy answers" in check.detail
    assert "Runs in LiteRT-LM" in (packed / "report.html").read_text()


@needs_engine
def test_the_engine_answers_as_litert_does(packed: Path) -> None:
    """Conversations shorter and longer than a chunk."""
    folder = packed / "artifact"
    text = Text(folder)
    said = [*sample_texts(4, seed=5, words=12), " ".join(sample_texts(2, seed=6, words=30))]
    lengths = [len(text.conversation([{"role": "user", "content": each}])) for each in said]
    assert lengths[0] < chunk(text.artifact) < lengths[-1]
    with runtime_for("litert").open(folder / text.artifact.model, settings_here(text.artifact.settings)) as session:
        found = compare_answers(folder / CONTAINER_FILE, session, text, said, max_tokens=32, threads=1)
    assert len(found.answers) == 5 and not found.fault
    assert all(each.is_given_alike and each.own for each in found.answers)
    assert [each.engine.rstrip("\ufffd") for each in found.answers] == [e.own.rstrip("\ufffd") for e in found.answers]


@needs_engine
def test_a_container_of_another_model_fails(packed: Path, tmp_path: Path) -> None:
    """Its weights are the same, but it lays out conversations in another way."""
    out = shutil.copytree(packed, tmp_path / "out")
    (out / "artifact" / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    add_container(out / "artifact")
    (out / "artifact" / "chat_template.jinja").write_text(TEMPLATE)
    sign_again(out / "artifact")
    report = measure_output(out, command="")
    (check,) = [check for check in report.checks if check.name == "litertlm"]
    assert not check.passed and not report.passed
    assert "8 prompts reach its model as other tokens" in check.detail


def sign_again(folder: Path) -> None:
    """Give artifact.json the digests of what lies beside it."""
    from edgegen.export.folder import describe_files

    record = load_json(folder / "artifact.json", Artifact)
    files = tuple(file for file in describe_files(folder) if file.path != "artifact.json")
    (folder / "artifact.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(record, files=files)))


def test_where_the_engine_is_not_installed_the_receipt_says_so(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(packed, tmp_path / "out")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "litert_lm" else find(name))
    report = measure_output(out, command="")
    assert report.passed and NOT_RUN in report.notes
    assert all(check.name != "litertlm" for check in report.checks)
