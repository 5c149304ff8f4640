"""What a device reads of a manifest, whoever wrote it."""

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgegen.bundle.manifest import MAX_MANIFEST_BYTES, parse_manifest, safe_path
from edgegen.common.codec import encode_json
from edgegen.common.files import digest_bytes
from edgegen.errors import Fault, TrustError, UnsupportedError
from edgegen.records.bundle import Manifest
from tests.bundle.releases import sample_manifest

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)
HOSTILE = (
    "../evil",
    "/etc/passwd",
    "a/../../b",
    "C:\\x",
    "a\\b",
    "",
    ".",
    "a//b",
    "a/",
    "~/x",
    "x\0y",
    ".hidden",
    "ü",
    "a b",
)


def tree() -> dict[str, object]:
    plain: dict[str, object] = msgspec.to_builtins(sample_manifest())
    return plain


def parse(plain: object) -> Manifest:
    return parse_manifest(json.dumps(plain).encode())


def test_a_manifest_is_read_back_and_unknown_keys_are_passed_over() -> None:
    assert parse_manifest(encode_json(sample_manifest())) == sample_manifest()
    assert parse({**tree(), "new_in_version_9": {"a": [1]}}) == sample_manifest()


@pytest.mark.parametrize("path", HOSTILE)
def test_a_path_that_leaves_its_folder_is_refused(path: str) -> None:
    plain = tree()
    plain["files"][1]["path"] = path  # type: ignore[index]
    with pytest.raises(TrustError, match="safe relative path") as caught:
        parse(plain)
    assert caught.value.fault == Fault.PATH and caught.value.exit_code == 6
    assert not safe_path(path)


@pytest.mark.parametrize(
    ("paths", "reason"),
    [
        (("model.gguf", "model.gguf"), "there twice"),
        (("model.gguf", "MODEL.gguf"), "there twice"),
        (("model.gguf", "manifest.json"), "own name"),
        (("model.gguf", "model.gguf/inner"), "a file and a folder"),
        (("other.gguf", "tokenizer.json"), "not among the files"),
    ],
)
def test_names_that_clash_are_refused(paths: tuple[str, str], reason: str) -> None:
    plain = tree()
    for file, path in zip(plain["files"], paths, strict=True):  # type: ignore[call-overload]
        file["path"] = path
    with pytest.raises(TrustError, match=reason) as caught:
        parse(plain)
    assert caught.value.fault == Fault.PATH


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        (("files", 0, "bytes"), 1 << 60, "out of range"),
        (("files", 0, "bytes"), -1, "out of range"),
        (("files", 0, "bytes"), 14, "add up"),
        (("files", 0, "segments", 0, "bytes"), 0, "segment's size"),
        (("files", 0, "digest"), "sha256:abc", "no digest"),
        (("files", 1, "digest"), digest_bytes(b"header"), "two sizes"),
        (("files",), [], "0 of them"),
        (("install_bytes",), 14, "install_bytes"),
        (("install_bytes",), 1 << 70, "install_bytes"),
        (("epoch",), -1, "epoch"),
        (("name",), "../up", "name"),
        (("version",), "1.0", "semantic"),
        (("version",), "1.0.0/../../x", "semantic"),
        (("created",), "yesterday", "created"),
        (("kind",), "firmware", "kind"),
        (("kind",), "light", "base"),
        (("kind",), "adapter", "base"),
        (("base",), digest_bytes(b""), "full release has none"),
        (("entry",), "../model.gguf", "entry"),
        (("settings", "threads"), 0, "settings.threads"),
        (("settings", "context_tokens"), 1 << 40, "settings.context_tokens"),
        (("health", "probation_s"), -1, "health.probation_s"),
        (("health", "load_timeout_s"), 0, "health.load_timeout_s"),
        (("golden", 0, "ids"), [], "golden"),
        (("golden", 0, "tokens"), [-1], "golden"),
        (("compat", "runtimes"), [], "compat.runtimes"),
    ],
    ids=str,
)
def test_numbers_that_could_hurt_are_refused_by_name(place: tuple[object, ...], value: object, reason: str) -> None:
    plain = tree()
    inner: object = plain
    for step in place[:-1]:
        inner = inner[step]  # type: ignore[index]
    inner[place[-1]] = value  # type: ignore[index]
    with pytest.raises(TrustError, match=reason):
        parse(plain)


@pytest.mark.parametrize(
    ("kind", "adapter", "reason"),
    [
        ("adapter", "", "not among the files"),
        ("adapter", "lora.gguf", "not among the files"),
        ("adapter", "model.gguf", "would lie over"),
        ("light", "tokenizer.json", "a light release has none"),
    ],
)
def test_an_adapter_is_a_file_of_its_own(kind: str, adapter: str, reason: str) -> None:
    changed = {**tree(), "kind": kind, "base": digest_bytes(b"base")}
    assert parse({**changed, "kind": "adapter", "adapter": "tokenizer.json"}).adapter == "tokenizer.json"
    with pytest.raises(TrustError, match=reason):
        parse({**changed, "adapter": adapter})


def test_a_huge_manifest_is_not_even_parsed() -> None:
    with pytest.raises(TrustError, match="at most") as caught:
        parse_manifest(b" " * (MAX_MANIFEST_BYTES + 1))
    assert caught.value.fault == Fault.SIZE


def test_a_later_schema_asks_for_an_update() -> None:
    with pytest.raises(UnsupportedError, match="schema 2"):
        parse({**tree(), "schema": 2})


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(TrustError):
        parse_manifest(b'{"x":' + b"[" * 200_000 + b"]" * 200_000 + b"}")


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_with_a_name(data: bytes) -> None:
    with pytest.raises(TrustError):
        parse_manifest(data)


@settings(max_examples=300)
@given(st.data())
def test_any_change_is_accepted_or_refused_and_nothing_else(data: st.DataObject) -> None:
    """Put anything in any place: no other exception, and what is accepted has only safe paths and sizes that add up."""
    plain = tree()
    inner: object = plain
    while True:
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))  # type: ignore[arg-type]
        key = data.draw(st.sampled_from(keys))
        following = inner[key]  # type: ignore[index]
        if not isinstance(following, dict | list) or not following or data.draw(st.booleans()):
            inner[key] = data.draw(ANY | st.sampled_from(HOSTILE))  # type: ignore[index]
            break
        inner = following
    try:
        manifest = parse(plain)
    except (TrustError, UnsupportedError):
        return
    assert all(safe_path(file.path) and file.bytes >= 0 for file in manifest.files)
    assert all(sum(s.bytes for s in file.segments) in (0, file.bytes) for file in manifest.files)
    assert len({file.path.casefold() for file in manifest.files}) == len(manifest.files)


@given(st.text(max_size=30))
def test_a_safe_path_stays_inside(text: str) -> None:
    import posixpath

    if safe_path(text):
        assert posixpath.normpath(posixpath.join("/slot", text)) == f"/slot/{text}"
