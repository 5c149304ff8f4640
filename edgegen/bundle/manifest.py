"""Read a manifest: refuse what could hurt a device, whoever signed it.

A signature says who wrote a manifest, not that it is harmless: a packer's fault must not become a write outside the
release's folder or a full disk. So every name, size and digest is checked before anything is done with it. Keys that
this version does not know are passed over, so that an older device can read a newer manifest.

File names are kept to letters, digits and `._+-`, so that they mean the same on every file system; two that differ only
in case are refused for the same reason.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable

import msgspec

from edgegen.errors import Fault, TrustError, UnsupportedError
from edgegen.records.bundle import MANIFEST_SCHEMA, BundleFile, Manifest

MAX_MANIFEST_BYTES = 8 << 20
MAX_FILES = 1000
MAX_SEGMENTS = 60_000
MAX_FILE_BYTES = 1 << 40
MAX_PATH_CHARACTERS = 200
MAX_EPOCH = 1 << 53
"""Larger integers are not exact in JSON readers of other languages."""
MANIFEST_NAME = "manifest.json"
"""The manifest's own name in a release's folder; no file of the release may have it."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_PART = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9._+-]*")
_VERSION = re.compile(
    r"(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})(-[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?(\+[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?",
    re.ASCII,
)
_KINDS = ("full", "light", "adapter")


def parse_manifest(data: bytes, *, where: str = "manifest") -> Manifest:
    """A manifest from its bytes.

    Args:
        data: anything.
        where: how messages call it.

    Raises:
        TrustError: not a manifest, or one that a device must not follow; the message names the field.
        UnsupportedError: a manifest of a later schema.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise _bad(where, f"{len(data):,} bytes, at most {MAX_MANIFEST_BYTES:,} are read", Fault.SIZE)
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _bad(where, f"not a manifest: {str(error)[:200]}") from error
    if manifest.schema != MANIFEST_SCHEMA:
        raise UnsupportedError(
            f"{where}: written in schema {manifest.schema}, and this edgegen reads {MANIFEST_SCHEMA}",
            hint="Update edgegen on the device first.",
        )
    check_manifest(manifest, where=where)
    return manifest


def check_manifest(manifest: Manifest, *, where: str = "manifest") -> None:
    """Whether every name, size and number is one that a device may follow.

    Raises:
        TrustError: one is not; the message names it.
    """
    _check_head(manifest, where)
    _check_paths([file.path for file in manifest.files], where)
    _check_files(manifest.files, where)
    total = sum(file.bytes for file in manifest.files)
    if not total <= manifest.install_bytes <= 2 * MAX_FILE_BYTES:
        raise _bad(where, f"install_bytes: {manifest.install_bytes} for files of {total} bytes", Fault.SIZE)
    _check_entry(manifest, where)
    _check_numbers(manifest, where)


def check_label(name: str, version: str, epoch: int, *, where: str = "manifest") -> None:
    """Whether a release may be called so.

    Raises:
        TrustError: it may not; the message names what is wrong.
    """
    if not _NAME.fullmatch(name):
        raise _bad(where, f"name: {name!r} is not of lower-case letters, digits and dashes")
    if len(version) > 100 or not _VERSION.fullmatch(version):
        raise _bad(where, f"version: {version[:100]!r} is no semantic version")
    if not 0 <= epoch <= MAX_EPOCH:
        raise _bad(where, f"epoch: {epoch} is out of range")


def safe_path(path: str) -> bool:
    """Whether a file name stays inside its folder and means the same on every file system."""
    parts = path.split("/")
    return len(path) <= MAX_PATH_CHARACTERS and all(_PART.fullmatch(part) for part in parts)


def _check_head(manifest: Manifest, where: str) -> None:
    check_label(manifest.name, manifest.version, manifest.epoch, where=where)
    if manifest.kind not in _KINDS:
        raise _bad(where, f"kind: {manifest.kind[:100]!r} is none of {', '.join(_KINDS)}")
    try:
        datetime.datetime.fromisoformat(manifest.created)
    except ValueError as error:
        raise _bad(where, f"created: {manifest.created[:100]!r} is no time") from error
    if manifest.kind == "full" and manifest.base:
        raise _bad(where, "base: a full release has none")
    if manifest.kind != "full" and not _DIGEST.fullmatch(manifest.base):
        raise _bad(where, f"base: {manifest.base[:100]!r} is no digest, and a {manifest.kind} release needs one")


def _check_paths(paths: Iterable[str], where: str) -> None:
    seen: set[str] = set()
    folders: set[str] = set()
    for path in paths:
        folded = path.casefold()
        if not safe_path(path):
            raise _bad(where, f"files: {path[:100]!r} is not a safe relative path", Fault.PATH)
        if folded == MANIFEST_NAME:
            raise _bad(where, f"files: {path!r} is the manifest's own name", Fault.PATH)
        if folded in seen:
            raise _bad(where, f"files: {path!r} is there twice", Fault.PATH)
        seen.add(folded)
        parts = folded.split("/")
        folders.update("/".join(parts[:count]) for count in range(1, len(parts)))
    both = sorted(seen & folders)
    if both:
        raise _bad(where, f"files: {both[0]!r} is a file and a folder", Fault.PATH)


def _check_files(files: tuple[BundleFile, ...], where: str) -> None:
    if not 1 <= len(files) <= MAX_FILES:
        raise _bad(where, f"files: {len(files)} of them, 1 to {MAX_FILES} are allowed", Fault.SIZE)
    if sum(len(file.segments) for file in files) > MAX_SEGMENTS:
        raise _bad(where, f"segments: more than {MAX_SEGMENTS:,}", Fault.SIZE)
    sizes: dict[str, int] = {}
    for file in files:
        if not 0 <= file.bytes <= MAX_FILE_BYTES:
            raise _bad(where, f"{file.path}: {file.bytes} bytes is out of range", Fault.SIZE)
        for digest, size in [(file.digest, file.bytes), *((part.digest, part.bytes) for part in file.segments)]:
            if not _DIGEST.fullmatch(digest):
                raise _bad(where, f"{file.path}: {digest[:100]!r} is no digest")
            if sizes.setdefault(digest, size) != size:
                raise _bad(where, f"{file.path}: one digest with two sizes", Fault.SIZE)
        if any(not 1 <= part.bytes <= file.bytes for part in file.segments):
            raise _bad(where, f"{file.path}: a segment's size is out of range", Fault.SIZE)
        if file.segments and sum(part.bytes for part in file.segments) != file.bytes:
            raise _bad(where, f"{file.path}: its segments do not add up to its {file.bytes:,} bytes", Fault.SIZE)


def _check_entry(manifest: Manifest, where: str) -> None:
    paths = {file.path for file in manifest.files}
    if not safe_path(manifest.entry):
        raise _bad(where, f"entry: {manifest.entry[:100]!r} is not a safe relative path", Fault.PATH)
    if manifest.kind == "full" and manifest.entry not in paths:
        raise _bad(where, f"entry: {manifest.entry!r} is not among the files", Fault.PATH)
    if manifest.kind == "adapter" and manifest.adapter not in paths:
        raise _bad(where, f"adapter: {manifest.adapter[:100]!r} is not among the files", Fault.PATH)
    if manifest.kind == "adapter" and manifest.adapter == manifest.entry:
        raise _bad(where, "adapter: is the file that it would lie over", Fault.PATH)
    if manifest.kind != "adapter" and manifest.adapter:
        raise _bad(where, f"adapter: a {manifest.kind} release has none")


def _check_numbers(manifest: Manifest, where: str) -> None:
    """Numbers that a device would start a runtime or a timer with."""
    settings, health = manifest.settings, manifest.health
    rules = {
        "settings.context_tokens": 1 <= settings.context_tokens <= 1 << 24,
        "settings.ubatch_tokens": 1 <= settings.ubatch_tokens <= 1 << 20,
        "settings.threads": 1 <= settings.threads <= 1024,
        "compat.min_ram_bytes": 0 <= manifest.compat.min_ram_bytes <= 1 << 50,
        "compat.runtimes": 1 <= len(manifest.compat.runtimes) <= 16,
        "health.load_timeout_s": 0 < health.load_timeout_s <= 86400,
        "health.max_rss_bytes": health.max_rss_bytes is None or 0 < health.max_rss_bytes <= 1 << 50,
        "health.min_tokens_per_s": health.min_tokens_per_s is None or 0 <= health.min_tokens_per_s <= 1e9,
        "health.min_golden_prefix": 0 <= health.min_golden_prefix <= 1 << 20,
        "health.max_log_prob_drop": 0 <= health.max_log_prob_drop <= 1e3,
        "health.probation_s": 0 <= health.probation_s <= 30 * 86400,
        "health.max_restarts": 0 <= health.max_restarts <= 1000,
        "health.max_error_fraction": 0 <= health.max_error_fraction <= 1,
        "golden": len(manifest.golden) <= 1000
        and all(
            item.ids
            and len(item.ids) + len(item.tokens) <= settings.context_tokens
            and min((*item.ids, *item.tokens)) >= 0
            and max((*item.ids, *item.tokens)) < 1 << 31
            and -1e6 <= item.log_prob <= 0
            for item in manifest.golden
        ),
        "reference": all(
            list(edges) == sorted(edges) and len(manifest.reference.counts.get(metric, ())) == len(edges) + 1
            for metric, edges in manifest.reference.edges.items()
        ),
    }
    for field, holds in rules.items():
        if not holds:
            raise _bad(where, f"{field} is out of range")


def _bad(where: str, reason: str, fault: Fault = Fault.MALFORMED) -> TrustError:
    return TrustError(
        f"{where}: {reason}", hint="Nothing of this release is used; pack and publish it again.", fault=fault
    )
