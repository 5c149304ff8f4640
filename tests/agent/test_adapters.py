"""An adapter on a device: a few kilobytes over an installed model, other answers, and back when it does not fit."""

import json
import time
from pathlib import Path

import msgspec
import openai
import pytest

from edgegen.bundle.light import pack_light, read_manifest
from edgegen.bundle.pack import Wanted, write_bundle
from edgegen.bundle.segments import describe_folder
from edgegen.bundle.sign import sign_bundle
from edgegen.records.bundle import Compat, Health, Manifest
from edgegen.runtime.text import Text
from tests.adapters import make_adapter
from tests.agent.releases import agent, configure, install, make_keys, pack, running
from tests.agent.serving import make_artifact, wait_until_healthy
from tests.simulators.device import whole

pytestmark = pytest.mark.slow

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


class Place(msgspec.Struct):
    """What the tests share. Not to be changed."""

    keys: Path
    model: Path
    base: Path
    adapted: Path
    lora: Path

    def over(self, out: Path, version: str, lora: Path, **files: Path) -> Path:
        """A signed bundle of a LoRA file over the base."""
        changes = {name.replace("__", "."): path for name, path in files.items()}
        wanted = Wanted(name="toy", version=version, epoch=1, health=Health(probation_s=0.5, load_timeout_s=30))
        pack_light(self.base, changes, out, wanted, adapter=lora)
        sign_bundle(out, self.keys)
        return out

    def altered(self, out: Path, lora: Path, **changes: object) -> Path:
        """A signed bundle with a file that `pack` would not take, or another manifest."""
        manifest = read_manifest(self.adapted)[0]
        (folder := out.with_suffix(".files")).mkdir()
        (folder / "adapter.gguf").write_bytes(lora.read_bytes())
        files, _ = describe_folder(folder, ["adapter.gguf"])
        manifest = msgspec.structs.replace(manifest, files=files, install_bytes=files[0].bytes, **changes)
        write_bundle(out, manifest, {"adapter.gguf": folder / "adapter.gguf"})
        sign_bundle(out, self.keys)
        return out


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("adapters")
    keys, artifact = make_keys(folder / "keys"), make_artifact(folder / "model")
    model = next(artifact.glob("*.gguf"))
    pack(artifact, folder / "base", keys, "1.0.0")
    lora = make_adapter(folder / "lora.gguf", model)
    found = Place(keys, model, folder / "base", folder / "adapted", lora)
    found.over(found.adapted, "1.1.0", lora)
    return found


@pytest.fixture
def config(place: Place, tmp_path: Path) -> Path:
    return configure(tmp_path / "device", place.keys)


def _digest(bundle: Path) -> str:
    return str(json.loads((bundle / "bundle.json").read_bytes())["digest"])


def _client(config: Path, digest: str) -> openai.OpenAI:
    """A client of the agent that runs, as soon as it serves a release."""
    port = config.parent / "home" / "port"
    until = time.monotonic() + 60
    while True:
        if port.is_file():
            url = f"http://127.0.0.1:{port.read_text().strip()}"
            try:
                if wait_until_healthy(url, 1).get("release") == digest:
                    return openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
            except OSError:
                pass
        assert time.monotonic() < until, "it does not serve"
        time.sleep(0.2)


def _answers(client: openai.OpenAI, version: str, manifest: Manifest) -> list[str]:
    """What the API says to the golden prompts."""
    return [
        client.completions.create(
            model=f"toy-{version}", prompt=list(golden.ids), max_tokens=len(golden.tokens), temperature=0
        )
        .choices[0]
        .text
        for golden in manifest.golden
    ]


def test_an_adapter_is_installed_over_its_base_and_left_again(config: Path, place: Place) -> None:
    home = config.parent / "home"
    base, adapted = read_manifest(place.base)[0], read_manifest(place.adapted)[0]
    assert install(config, place.base)["bytesFetched"] > 100_000
    with running(config):
        client = _client(config, _digest(place.base))
        before = _answers(client, "1.0.0", base)
        said = install(config, place.adapted)
        assert said["phase"] == "confirmed"
        assert said["bytesFetched"] == place.lora.stat().st_size < 11_000
        assert whole(home) == _digest(place.adapted) and whole(home, "previous") == _digest(place.base)
        after = _answers(_client(config, _digest(place.adapted)), "1.1.0", adapted)
        assert after != before
        assert after == _decoded(place, adapted)
        # The weights are on the disk once.
        weights = [home / link / base.entry for link in ("current", "previous")]
        assert weights[0].stat().st_ino == weights[1].stat().st_ino
        agent(config, "rollback")
        assert _answers(_client(config, _digest(place.base)), "1.0.0", base) == before


def _decoded(place: Place, manifest: Manifest) -> list[str]:
    text = Text(place.model.parent)
    return [text.decode(golden.tokens) for golden in manifest.golden]


def test_a_template_may_come_with_it(config: Path, place: Place, tmp_path: Path) -> None:
    (tmp_path / "new.jinja").write_text(TEMPLATE)
    both = place.over(tmp_path / "both", "1.2.0", place.lora, chat_template__jinja=tmp_path / "new.jinja")
    install(config, place.base)
    said = install(config, both)
    assert said["phase"] == "confirmed" and said["bytesFetched"] < 15_000
    current = config.parent / "home" / "current"
    assert (current / "chat_template.jinja").read_text() == TEMPLATE
    assert (current / "adapter.gguf").read_bytes() == place.lora.read_bytes()


def test_one_that_does_not_fit_leaves_the_base_serving(config: Path, place: Place, tmp_path: Path) -> None:
    home = config.parent / "home"
    install(config, place.base)
    wide = make_adapter(tmp_path / "wide.gguf", place.model, wider=3)
    other = make_adapter(tmp_path / "other.gguf", place.model, seed=1)
    runtimes = Compat(arch=(), runtimes=("onnxruntime-genai", "onnxruntime"))
    with running(config):
        client = _client(config, _digest(place.base))
        before = _answers(client, "1.0.0", read_manifest(place.base)[0])
        for number, (bundle, reason, detail) in enumerate(
            (
                (place.altered(tmp_path / "wide", wide, version="2.0.0"), "load-failed", "incorrect shape"),
                (place.altered(tmp_path / "other", other, version="2.0.1"), "golden", ""),
                (
                    place.altered(tmp_path / "onnx", place.lora, version="2.0.2", compat=runtimes),
                    "incompatible",
                    "an adapter for onnxruntime-genai",
                ),
            )
        ):
            said = install(config, bundle, code=None)
            assert (said["phase"], said["reason"]) == ("failed", reason), (number, said)
            assert detail in said["detail"]
        assert whole(home) == _digest(place.base)
        assert _answers(client, "1.0.0", read_manifest(place.base)[0]) == before


def test_it_needs_its_base(config: Path, place: Place) -> None:
    said = install(config, place.adapted, code=None)
    assert (said["phase"], said["reason"]) == ("failed", "base-missing")
    assert not (config.parent / "home" / "current").exists()
