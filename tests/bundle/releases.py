"""Small signed releases, made in milliseconds: real keys and metadata, files of a few bytes."""

import datetime
import shutil
from pathlib import Path

import msgspec

from edgegen.bundle.ledger import create_keys
from edgegen.bundle.pack import Packed, Wanted, write_bundle
from edgegen.bundle.repository import init_repository, publish
from edgegen.bundle.segments import describe_folder
from edgegen.bundle.sign import sign_bundle
from edgegen.bundle.sources import FolderSource
from edgegen.bundle.trust import Trust
from edgegen.common.files import digest_bytes
from edgegen.records.bundle import BundleFile, Compat, Golden, Manifest, Segment
from edgegen.records.plan import Settings

NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
DAY = 86400.0


def later(days: float) -> datetime.datetime:
    """So many days after NOW."""
    return NOW + datetime.timedelta(days=days)


def sample_manifest(**changes: object) -> Manifest:
    """A manifest that is accepted."""
    parts = (b"header", b"weights")
    files = (
        BundleFile(
            path="model.gguf",
            bytes=13,
            digest=digest_bytes(b"".join(parts)),
            segments=tuple(Segment(bytes=len(part), digest=digest_bytes(part)) for part in parts),
        ),
        BundleFile(path="tokenizer.json", bytes=2, digest=digest_bytes(b"{}")),
    )
    manifest = Manifest(
        schema=1,
        name="kitchen",
        version="1.0.0",
        created="2030-01-01T00:00:00+00:00",
        epoch=3,
        kind="full",
        target="gguf",
        entry="model.gguf",
        settings=Settings(context_tokens=64, ubatch_tokens=16, threads=1, kv_type="f16"),
        files=files,
        compat=Compat(arch=(), runtimes=("llama.cpp",)),
        install_bytes=15,
        golden=(Golden(ids=(1, 2), tokens=(3,), log_prob=-0.5),),
    )
    return msgspec.structs.replace(manifest, **changes)


def make_keys(folder: Path, **more: int) -> Path:
    """A folder of keys made at NOW."""
    create_keys(folder, now=NOW, **more)  # type: ignore[arg-type]
    return folder


def make_bundle(
    folder: Path, keys: Path | None, version: str, contents: bytes, *, at: float = 0, **more: str
) -> Packed:
    """A bundle with two files, signed so many days after NOW."""
    source = folder.with_name(folder.name + ".files")
    source.mkdir(exist_ok=True)
    (source / "model.gguf").write_bytes(contents)
    (source / "tokenizer.json").write_bytes(b"{}")
    files, _ = describe_folder(source, ["model.gguf", "tokenizer.json"])
    manifest = sample_manifest(
        version=version, files=files, install_bytes=sum(f.bytes for f in files), created=later(at).isoformat()
    )
    packed = write_bundle(folder, manifest, {f.path: source / f.path for f in files}, **more)
    if keys is not None:
        sign_bundle(folder, keys, now=later(at))
    return packed


def make_site(tmp: Path) -> tuple[Path, Path, Packed]:
    """(keys, repository, what was published)."""
    keys = make_keys(tmp / "keys")
    site = tmp / "site"
    init_repository(site, keys)
    packed = make_bundle(tmp / "b1", keys, "1.0.0", b"one" * 20)
    publish(site, tmp / "b1", now=lambda: NOW.timestamp())
    return keys, site, packed


def trust(
    state: Path,
    keys: Path,
    source: Path,
    *,
    days: float = 0,
    allow_older: bool = False,
    is_set: bool | None = None,
) -> Trust:
    """A device that looks at a repository so many days after NOW."""
    return Trust(
        state,
        (keys / "root.json").read_bytes(),
        FolderSource(source),
        now=lambda: later(days).timestamp(),
        is_set=lambda: is_set,
        allow_older=allow_older,
    )


def copy(source: Path, target: Path) -> Path:
    """A copy that may be changed."""
    return shutil.copytree(source, target)


__all__ = ["DAY", "NOW", "Wanted", "copy", "later", "make_bundle", "make_keys", "make_site", "sample_manifest", "trust"]
