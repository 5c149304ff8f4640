"""ONNX Runtime's own sides: what it says, what it keeps quiet, and what both ways of running a folder share."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgegen.errors import ConfigError, DeviceError, UnsupportedError
from edgegen.runtime import genai, onnx
from edgegen.runtime.base import Runtime
from edgegen.runtime.genai import OnnxGenai
from edgegen.runtime.kernels_onnx import one_product
from edgegen.runtime.onnx import OnnxRuntime
from edgegen.runtime.registry import runtime_for
from tests.export.packed_models import IDS, SETTINGS, export_both, mean_kl, torch_logits
from tests.tiny_models import make_tiny, pack_uniform

BOTH = pytest.mark.parametrize("make", [OnnxRuntime, OnnxGenai])


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact `a`, its strict twin `s` and the compressed folder `c`; one built, one traced."""
    place = tmp_path_factory.mktemp("model")
    export_both(pack_uniform(make_tiny(request.param, place / "hf", tied=True), place / "c", "u4_32"), place)
    return place


def settings(**changes: object) -> object:
    import msgspec

    return msgspec.structs.replace(SETTINGS, **changes)


@BOTH
@pytest.mark.parametrize("ubatch", [1, 7, 128])
def test_any_micro_batch_gives_torchs_numbers(make: Callable[[], Runtime], ubatch: int, folder: Path) -> None:
    """The cache is written in place, over what the sequence before left in it."""
    wanted = torch_logits(folder / "c", IDS)
    with make().open(folder / "s" / "model.onnx", settings(ubatch_tokens=ubatch)) as session:
        assert mean_kl(wanted, session.score(IDS)) < 1e-9
        for length in (60, 1, 33):
            np.testing.assert_allclose(session.start(IDS[:length]), wanted[length - 1], atol=1e-3)
        for position in range(33, 60):
            np.testing.assert_allclose(session.step(IDS[position]), wanted[position], atol=1e-3)
        assert mean_kl(wanted, session.score(IDS)) < 1e-9


def test_both_say_the_same(folder: Path) -> None:
    """As shipped, token by token, because the kernels of one token and of many differ."""
    with (
        OnnxRuntime().open(folder / "a" / "model.onnx", SETTINGS) as plain,
        OnnxGenai().open(folder / "a" / "model.onnx", SETTINGS) as usual,
    ):
        assert list(plain.generate(IDS, max_tokens=60)) == list(usual.generate(IDS, max_tokens=60))
        np.testing.assert_allclose(plain.start(IDS), usual.start(IDS), atol=1e-4)


def test_the_usual_runtime_is_onnxruntime_genai() -> None:
    assert runtime_for("onnx").name == "onnxruntime-genai"
    assert runtime_for("onnx", "onnxruntime").name == "onnxruntime"


@BOTH
def test_nothing_is_printed(
    make: Callable[[], Runtime], folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with make().open(folder / "a" / "model.onnx", SETTINGS) as session:
        session.score(IDS)
        session.start(IDS)
    copy = shutil.copytree(folder / "a", tmp_path / "a")
    (copy / "model.onnx").write_bytes(b"noise" * 100)
    with pytest.raises(DeviceError):
        make().open(copy / "model.onnx", SETTINGS)
    assert capfd.readouterr() == ("", "")


@BOTH
@pytest.mark.parametrize("harm", ["missing", "cut"])
def test_damaged_weights_say_why(make: Callable[[], Runtime], harm: str, folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder / "a", tmp_path / "a")
    data = copy / "model.onnx.data"
    if harm == "missing":
        data.unlink()
    else:
        data.write_bytes(data.read_bytes()[:1000])
    words = "does not exist" if harm == "missing" else "file_length: 1000 are out of bounds"
    with pytest.raises(DeviceError, match=words) as caught:
        make().open(copy / "model.onnx", SETTINGS)
    assert "\n" not in str(caught.value) and ".cc:" not in str(caught.value)


def test_without_its_configuration_genai_does_not_start(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder / "a", tmp_path / "a")
    for content, message in ((None, "no such file"), ("{}", "not a genai_config"), ("{", "not a genai_config")):
        (copy / "genai_config.json").unlink()
        if content is not None:
            (copy / "genai_config.json").write_text(content)
        with pytest.raises(ConfigError, match=message):
            OnnxGenai().open(copy / "model.onnx", SETTINGS)
        (copy / "genai_config.json").touch()


def test_a_foreign_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(one_product("u4_32", 64))
    with pytest.raises(DeviceError, match="not a graph that edgegen wrote"):
        OnnxRuntime().open(tmp_path / "model.onnx", SETTINGS)


@BOTH
def test_settings_that_do_not_fit(make: Callable[[], Runtime], folder: Path) -> None:
    model = folder / "a" / "model.onnx"
    with pytest.raises(ConfigError, match="kv_type 'f16' is unknown"):
        make().open(model, settings(kv_type="f16"))
    with pytest.raises(ConfigError, match=r"made for \d+ tokens, not for a context of 1000"):
        make().open(model, settings(context_tokens=1000))


@pytest.mark.parametrize(
    ("make", "library", "module"),
    [
        (OnnxRuntime, onnx.library, "onnxruntime"),
        (OnnxGenai, genai._library, "onnxruntime_genai"),
    ],
)
def test_a_runtime_that_is_not_installed_names_its_extra(
    make: Callable[[], Runtime], library: object, module: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library.cache_clear()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module, None)
    try:
        for call in (make().version, lambda: make().open(tmp_path / "x", SETTINGS)):
            with pytest.raises(UnsupportedError) as caught:
                call()
            assert "edgegen[onnx]" in caught.value.hint
    finally:
        library.cache_clear()  # type: ignore[attr-defined]


def test_import_is_light_and_telemetry_is_off() -> None:
    code = (
        "import os, sys, edgegen.runtime.onnx, edgegen.runtime.genai as g\n"
        "assert not {'onnxruntime', 'onnxruntime_genai', 'onnx', 'torch'} & set(sys.modules)\n"
        "g.OnnxGenai().version(); edgegen.runtime.onnx.OnnxRuntime().version()\n"
        "assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'\n"
        "assert not {'onnx', 'torch', 'transformers'} & set(sys.modules)\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
