"""Whether a device may take a signed release."""

import msgspec
import pytest

from edgegen.bundle.accept import Facts, choose_runtime, compose, require_epoch
from edgegen.common.files import digest_bytes
from edgegen.errors import Fault, TrustError, UnsupportedError
from edgegen.records.bundle import BundleFile, Compat, Segment
from tests.bundle.releases import sample_manifest

FACTS = Facts(arch="aarch64", ram_bytes=1 << 30, runtimes={"llama.cpp": "0.3.36"}, agent="0.1.0", epoch=3)


def test_a_lower_epoch_is_refused_and_an_older_version_of_the_same_is_not() -> None:
    require_epoch(sample_manifest(epoch=3, version="0.1.0"), FACTS)
    with pytest.raises(TrustError, match="epoch 2") as caught:
        require_epoch(sample_manifest(epoch=2, version="9.0.0"), FACTS)
    assert caught.value.fault == Fault.DOWNGRADE


@pytest.mark.parametrize(
    ("compat", "reason"),
    [
        (Compat(arch=("x86_64",), runtimes=("llama.cpp",)), "made for x86_64"),
        (Compat(arch=(), runtimes=("llama.cpp",), min_ram_bytes=2 << 30), "bytes of memory"),
        (Compat(arch=(), runtimes=("litert", "litert-interpreter")), "needs one of litert, litert-interpreter"),
        (Compat(arch=(), runtimes=("llama.cpp",), runtime_versions=">=0.4"), "needs llama.cpp >=0.4"),
        (Compat(arch=(), runtimes=("llama.cpp",), min_agent="0.2.0"), "needs edgegen 0.2.0"),
    ],
)
def test_an_unfit_device_is_told_why(compat: Compat, reason: str) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        choose_runtime(sample_manifest(compat=compat), FACTS)


def test_the_first_installed_runtime_is_chosen() -> None:
    compat = Compat(arch=("aarch64",), runtimes=("other", "llama.cpp"), runtime_versions=">=9")
    assert choose_runtime(sample_manifest(compat=compat), FACTS) == "llama.cpp"


def test_an_adapter_needs_a_runtime_that_takes_it() -> None:
    adapter = sample_manifest(kind="adapter", base=digest_bytes(b"base"), adapter="tokenizer.json")
    assert choose_runtime(adapter, FACTS) == "llama.cpp"
    both = Compat(arch=(), runtimes=("onnxruntime", "llama.cpp"))
    facts = msgspec.structs.replace(FACTS, runtimes={"onnxruntime": "1.27", "llama.cpp": "0.3.36"})
    assert choose_runtime(msgspec.structs.replace(adapter, compat=both), facts) == "llama.cpp"
    neither = Compat(arch=(), runtimes=("onnxruntime-genai", "onnxruntime"))
    with pytest.raises(UnsupportedError, match="an adapter for onnxruntime-genai, onnxruntime"):
        choose_runtime(msgspec.structs.replace(adapter, compat=neither), facts)


def test_a_version_range_that_is_none_is_refused() -> None:
    with pytest.raises(TrustError, match="no version range"):
        choose_runtime(
            sample_manifest(compat=Compat(arch=(), runtimes=("llama.cpp",), runtime_versions="newest")), FACTS
        )


def test_a_light_release_lies_over_its_base() -> None:
    base = sample_manifest()
    new = BundleFile(path="tokenizer.json", bytes=3, digest=digest_bytes(b"[1]"))
    more = BundleFile(path="chat_template.jinja", bytes=1, digest=digest_bytes(b"x"))
    light = sample_manifest(kind="light", base=digest_bytes(b"base"), files=(new, more))
    assert compose(light, base) == (base.files[0], new, more)
    assert compose(base, None) == base.files
    other = msgspec.structs.replace(base, target="onnx")
    for wrong, said in ((None, "not installed"), (light, "is a light release"), (other, "its base is for onnx")):
        with pytest.raises(UnsupportedError, match=said):
            compose(light, wrong)
    clash = msgspec.structs.replace(light, files=(msgspec.structs.replace(new, path="Tokenizer.json"),))
    with pytest.raises(TrustError):
        compose(clash, base)


def test_a_light_release_changes_no_weights_and_names_files_that_are_there() -> None:
    base = sample_manifest()
    tensors = (Segment(bytes=1, digest=digest_bytes(b"a"), name="t"), Segment(bytes=1, digest=digest_bytes(b"b")))
    weights = BundleFile(path="more.gguf", bytes=2, digest=digest_bytes(b"ab"), segments=tensors)
    base = msgspec.structs.replace(base, files=(*base.files, weights))
    word = BundleFile(path="tokenizer.json", bytes=3, digest=digest_bytes(b"[1]"))
    light = sample_manifest(kind="light", base=digest_bytes(b"base"), files=(word,))
    entry = msgspec.structs.replace(word, path=base.entry)
    lora = msgspec.structs.replace(weights, path="adapter.gguf")
    adapter = msgspec.structs.replace(light, kind="adapter", adapter="adapter.gguf", files=(lora,))
    assert lora in compose(adapter, base)
    replace = msgspec.structs.replace
    for wrong, said in (
        (replace(light, entry="other.gguf"), "is not its base's model file"),
        (replace(light, entry="tokenizer.json"), "is not its base's model file"),
        (replace(light, files=(entry,)), "holds weights"),
        (replace(light, files=(replace(word, path="more.gguf"),)), "holds weights"),
        (replace(light, files=(lora,)), "holds weights"),
        (replace(adapter, adapter="absent.gguf"), "is not among its files"),
        (replace(adapter, adapter="more.gguf", files=(weights,)), "is a file of its base"),
    ):
        with pytest.raises(TrustError, match=said):
            compose(wrong, base)
