"""From a finished output to a signed bundle, by the command line; golden answers from the real runtime."""

import json
import shutil
from pathlib import Path

import msgspec
import pytest

import edgegen
from edgegen.bundle.layout import blob_file
from edgegen.bundle.light import read_manifest
from edgegen.bundle.pack import write_bundle
from edgegen.bundle.profile import EDGES
from edgegen.common.codec import load_json
from edgegen.errors import ConfigError, UnsupportedError
from edgegen.records.artifact import Artifact
from edgegen.records.plan import Plan
from edgegen.records.prompts import prompt_mark
from edgegen.runtime.llamacpp import LlamaCpp
from edgegen.runtime.registry import runtime_for
from edgegen.sdk.release import next_version, product_name
from tests.adapters import make_adapter
from tests.flows.command import run_cli

pytest.importorskip("llama_cpp")


@pytest.fixture(scope="module")
def made(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """keys and a signed bundle of a finished output. Not to be changed."""
    place = tmp_path_factory.mktemp("pack")
    done = run_cli("keys", "init", place / "keys")
    assert done.code == 0, done.err
    done = run_cli("pack", finished, "--keys", place / "keys", "--out", place / "b1", "--name", "calm", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["bundle"]["signed"] is True
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "place")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--name", "../x"), "name: '../x'"),
        (("--version", "one"), "version: 'one'"),
        (("--epoch", "-1"), "epoch: -1"),
        (("--out", "OTHER"), "exists and is no bundle"),
    ],
)
def test_what_cannot_be_is_said_before_the_model_is_asked(
    words: tuple[str, ...], says: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgegen.bundle.pack.ask_artifact", lambda *_, **__: pytest.fail("work began"))
    (tmp_path / "other").write_text("mine")
    right = ("--out", tmp_path / "b", "--name", "calm", "--version", "1.0.0")
    done = run_cli("pack", finished, *right, *(tmp_path / "other" if word == "OTHER" else word for word in words))
    assert done.code == 2 and says in done.err and not done.out, done


def test_a_bundle_names_everything_that_a_device_needs(made: Path, finished: Path) -> None:
    manifest, _ = read_manifest(made / "b1")
    paths = {file.path for file in manifest.files}
    assert {"model.gguf", "artifact.json", "tokenizer.json", "report.json"} <= paths
    assert manifest.entry == "model.gguf" and manifest.version == "1.0.0" and manifest.kind == "full"
    assert manifest.provenance is not None and manifest.provenance.model_digest.startswith("sha256:")
    plan = load_json(finished / "plan.json", Plan)
    origin = manifest.provenance
    assert (origin.lineage, origin.terms, origin.profile) == (plan.lineage, plan.terms, plan.profile.name)
    assert origin.lineage and origin.terms is not None
    assert manifest.compat.runtimes[0] == "llama.cpp" and manifest.compat.runtime_versions.startswith(">=")
    for file in manifest.files:
        assert (made / "b1" / blob_file(file.digest)).stat().st_size == file.bytes
    assert len(manifest.golden) > 0
    reference = manifest.reference
    assert set(EDGES) - set(reference.edges) <= {"byte_fraction"}  # the vocabulary may have no bytes
    assert all(len(reference.counts[metric]) == len(edges) + 1 for metric, edges in reference.edges.items())
    assert sum(reference.counts["answer_tokens"]) >= sum(reference.counts["mean_log_prob"]) > 0


def test_golden_answers_are_the_runtimes_own(made: Path, finished: Path) -> None:
    manifest, _ = read_manifest(made / "b1")
    artifact = load_json(finished / "artifact/artifact.json", Artifact)
    with runtime_for("gguf").open(finished / "artifact" / artifact.model, artifact.settings) as session:
        for golden in manifest.golden:
            assert tuple(session.generate(golden.ids, max_tokens=len(golden.tokens))) == golden.tokens
            assert golden.log_prob < 0


def test_packed_published_and_checked_by_the_command_line(place: Path) -> None:
    assert run_cli("repo", "init", place / "site", "--keys", place / "keys").code == 0
    done = run_cli("repo", "add", place / "site", place / "b1")
    assert done.code == 0, done.err
    listed = json.loads(run_cli("repo", "list", place / "site", "--json").out)
    assert [item["version"] for item in listed["releases"]] == ["1.0.0"]
    assert run_cli("repo", "check", place / "site", "--root", place / "keys/root.json").code == 0
    manifest, _ = read_manifest(place / "b1")
    blob = place / "site" / blob_file(manifest.files[0].digest)
    blob.write_bytes(blob.read_bytes()[:-1])
    done = run_cli("repo", "check", place / "site")
    assert done.code == 6 and "altered" in done.err


def test_the_next_version_says_what_it_transfers(place: Path, finished: Path) -> None:
    done = run_cli("pack", finished, "--keys", place / "keys", "--out", place / "b2", "--name", "calm")
    assert done.code == 0, done.err
    assert "calm 1.1.0" in done.out and "to transfer from 1.0.0" in done.out
    new, old = read_manifest(place / "b2")[0], read_manifest(place / "b1")
    assert new.provenance is not None and new.provenance.parent == old[1]


def test_a_light_release_ships_a_template_alone(place: Path, tmp_path: Path) -> None:
    template = tmp_path / "new.jinja"
    plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    template.write_text(prompt_mark("short", "0123456789ab") + plain)
    release = edgegen.pack_bundle(
        place / "b1", keys=place / "keys", out=place / "b2", replace={"chat_template.jinja": template}
    )
    manifest, base = release.manifest, read_manifest(place / "b1")
    assert manifest.provenance is not None and manifest.provenance.prompt == "short 0123456789ab"
    assert base[0].provenance is not None and base[0].provenance.prompt == ""
    assert next(e.note for e in edgegen.list_models(place / "b2")) == "signed, prompt short 0123456789ab"
    assert manifest.kind == "light" and manifest.base == base[1] and manifest.golden == base[0].golden
    assert {file.path for file in manifest.files} == {"chat_template.jinja", "artifact.json"}
    assert manifest.install_bytes < 4096
    record = next(file for file in manifest.files if file.path == "artifact.json")
    artifact = load_json(place / "b2" / blob_file(record.digest), Artifact)
    assert "chat_template.jinja" in {file.path for file in artifact.files}
    with pytest.raises(UnsupportedError, match="is a light release"):
        edgegen.pack_bundle(place / "b2", out=place / "b3", replace={"chat_template.jinja": template})


def test_a_light_release_that_could_not_run_is_not_packed(place: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.jinja"
    wrong.write_text("{% for %}")
    for path in ("chat_template.jinja", "model.gguf", "../up", "artifact.json"):
        with pytest.raises(ConfigError):
            edgegen.pack_bundle(place / "b1", out=place / "b2", replace={path: wrong})
    assert not (place / "b2").exists()


def test_an_adapter_ships_alone(place: Path, finished: Path, tmp_path: Path) -> None:
    model = finished / "artifact/model.gguf"
    lora = make_adapter(tmp_path / "lora.gguf", model)
    done = run_cli("pack", place / "b1", "--adapter", lora, "--keys", place / "keys", "--out", place / "b2", "--json")
    assert done.code == 0, done.err
    assert done.err == "" and json.loads(done.out)["transfer"][0] == lora.stat().st_size
    (manifest, _), (base, base_digest) = read_manifest(place / "b2"), read_manifest(place / "b1")
    assert (manifest.kind, manifest.base, manifest.adapter) == ("adapter", base_digest, "adapter.gguf")
    assert [file.path for file in manifest.files] == ["adapter.gguf"]
    assert manifest.install_bytes == lora.stat().st_size < 20_000 < sum(file.bytes for file in base.files)
    assert [golden.ids for golden in manifest.golden] == [golden.ids for golden in base.golden]
    assert manifest.golden != base.golden
    artifact = load_json(finished / "artifact/artifact.json", Artifact)
    with LlamaCpp().open(model, artifact.settings, lora) as session:
        for golden in manifest.golden:
            assert tuple(session.generate(golden.ids, max_tokens=len(golden.tokens))) == golden.tokens
    # What lies over an adapter's release is refused; both together are not.
    template = tmp_path / "new.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    for more in ({"adapter": lora}, {"replace": {"chat_template.jinja": template}}):
        with pytest.raises(UnsupportedError, match="is an adapter release") as caught:
            edgegen.pack_bundle(place / "b2", out=place / "b3", **more)  # type: ignore[arg-type]
        assert base_digest in caught.value.hint
    both = edgegen.pack_bundle(
        place / "b1", out=place / "b3", adapter=lora, replace={"chat_template.jinja": template}
    ).manifest
    assert both.kind == "adapter" and both.golden == manifest.golden
    assert {file.path for file in both.files} == {"adapter.gguf", "chat_template.jinja", "artifact.json"}


def test_an_adapter_without_effect_is_said(place: Path, finished: Path, tmp_path: Path) -> None:
    lora = make_adapter(tmp_path / "lora.gguf", finished / "artifact/model.gguf", strength=0.0)
    done = run_cli("pack", place / "b1", "--adapter", lora, "--out", place / "b2")
    assert done.code == 0 and "changes no golden answer" in done.err


def test_an_adapter_that_does_not_fit_is_not_packed(place: Path, finished: Path, tmp_path: Path) -> None:
    model = finished / "artifact/model.gguf"
    lora = make_adapter(tmp_path / "lora.gguf", model)
    wide = make_adapter(tmp_path / "wide.gguf", model, wider=2)
    base, _ = read_manifest(place / "b1")
    compat = msgspec.structs.replace(base.compat, runtimes=("onnxruntime-genai", "onnxruntime"))
    files = {file.path: place / "b1" / blob_file(file.digest) for file in base.files}
    write_bundle(place / "onnx", msgspec.structs.replace(base, target="onnx", compat=compat), files)
    for build, adapter, code, said in (
        (place / "b1", tmp_path / "nothing.gguf", 2, "no such file"),
        (place / "b1", place / "keys" / "root.json", 2, "no LoRA file in GGUF"),
        (place / "b1", wide, 7, "incorrect shape"),
        (place / "b1", model, 7, "but got: model"),
        (place / "onnx", lora, 3, "onnxruntime-genai, onnxruntime take no adapters"),
        (finished, lora, 2, "bundle"),
    ):
        done = run_cli("pack", build, "--adapter", adapter, "--out", place / "b2")
        assert done.code == code and said in done.err and "Traceback" not in done.err, done.err
        assert not (place / "b2").exists()
    blob = place / "b1" / blob_file(next(file.digest for file in base.files if file.path == base.entry))
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    done = run_cli("pack", place / "b1", "--adapter", lora, "--out", place / "b2")
    assert done.code == 2 and "altered" in done.err


def test_what_did_not_pass_is_not_packed(finished_copy: Path, tmp_path: Path) -> None:
    report = json.loads((finished_copy / "report.json").read_bytes())
    report["passed"] = False
    report["checks"][0]["passed"] = False
    (finished_copy / "report.json").write_text(json.dumps(report))
    done = run_cli("pack", finished_copy, "--out", tmp_path / "b")
    assert done.code == 5 and "intact" in done.err and not (tmp_path / "b").exists()


@pytest.mark.parametrize("name", ["model.gguf", "tokenizer.json"])
def test_what_was_altered_is_not_packed(finished_copy: Path, tmp_path: Path, name: str) -> None:
    with (finished_copy / "artifact" / name).open("ab") as stream:
        stream.write(b" ")
    done = run_cli("pack", finished_copy, "--out", tmp_path / "b")
    assert done.code == 2 and name in done.err


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--name", "Up Per"], "name"),
        (["--version", "one"], "version"),
        (["--epoch", "-1"], "epoch"),
        (["--keys", "nowhere"], "no signing keys"),
        (["--replace", "nonsense"], "PATH=FILE"),
    ],
    ids=str,
)
def test_wrong_options_exit_2(finished: Path, tmp_path: Path, more: list[str], named: str) -> None:
    done = run_cli("pack", finished, "--out", tmp_path / "b", *more)
    assert done.code == 2 and named in done.err and "Traceback" not in done.err
    assert not list(tmp_path.iterdir())


def test_a_bundle_does_not_replace_what_is_none(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b/diary.txt").write_text("dear diary")
    done = run_cli("pack", finished, "--out", tmp_path / "b")
    assert done.code == 2 and "no bundle" in done.err
    assert [path.name for path in tmp_path.rglob("*")] == ["b", "diary.txt"]


def test_keys_are_shown_and_rotated(place: Path) -> None:
    before = json.loads(run_cli("keys", "show", place / "keys", "--json").out)
    assert run_cli("keys", "rotate", place / "keys", "release").out == "signed\n"
    assert run_cli("keys", "renew", place / "keys").out == "signed\n"
    after = json.loads(run_cli("keys", "show", place / "keys", "--json").out)
    ids = [next(state["keyids"] for state in states if state["role"] == "release") for states in (before, after)]
    assert not set(ids[0]) & set(ids[1])
    assert "release" in run_cli("keys", "show", place / "keys").out
    assert run_cli("keys", "rotate", place / "keys", "relase").code == 2
    assert run_cli("keys", "online", place / "keys", place / "online").code == 0


def test_online_keys_are_copied_into_a_folder_and_nowhere_else(tmp_path: Path) -> None:
    keys, out, file, full = (tmp_path / name for name in ("keys", "online", "file", "full"))
    assert run_cli("keys", "init", keys).code == 0
    file.write_text("a letter")
    full.mkdir()
    (full / "diary.txt").write_text("dear diary")
    for place, said in ((file, "is a file"), (full, "no folder of keys"), (file / "below", "Not a directory")):
        done = run_cli("keys", "online", keys, place)
        assert done.code == 2 and said in done.err and "Traceback" not in done.err, done
    assert file.read_text() == "a letter" and [path.name for path in full.iterdir()] == ["diary.txt"]
    for _ in range(2):  # again is the same
        assert run_cli("keys", "online", keys, out).code == 0
        copies = sorted((out / "private").iterdir())
        assert [path.name for path in copies] == ["snapshot-1.pem", "timestamp-1.pem"]
        assert all(path.stat().st_mode & 0o777 == 0o600 for path in copies)
        assert all(path.read_bytes() == (keys / "private" / path.name).read_bytes() for path in copies)
    (keys / "private" / "timestamp-1.pem").unlink()
    assert "are not here" in run_cli("keys", "online", keys, tmp_path / "second").err
    assert not (tmp_path / "second").exists()
    assert run_cli("keys", "online", tmp_path / "nowhere", out).code == 2


def test_names_and_versions() -> None:
    assert product_name("HuggingFaceTB/SmolLM2-135M") == "smollm2-135m"
    assert product_name("/models/Käse_Brot/") == "kase-brot"
    assert product_name("模型") == "model"
    assert next_version([]) == "1.0.0"
    assert next_version(["1.9.0", "1.10.2-rc.1", "0.50.0"]) == "1.11.0"
