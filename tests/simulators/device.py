"""A device without a model: releases of a few bytes, a repository in memory, a clock that is turned by hand.

What is real here is everything that touches files: the state machine, the fetching, the journal, the links.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from edgegen.agent.config import Limits
from edgegen.agent.disk import Disk
from edgegen.agent.home import Home, damaged_files, read_manifest
from edgegen.agent.journal import Action, Journal
from edgegen.agent.update import Updater, Verdict
from edgegen.bundle.trust import Proven
from edgegen.common.codec import encode_json
from edgegen.common.files import digest_bytes
from edgegen.errors import TrustError
from edgegen.records.bundle import BundleFile, Compat, Health, Manifest, Segment
from edgegen.records.deployment import Reason
from edgegen.records.plan import Settings
from tests.simulators.crashing_disk import CrashingDisk

FIT = Verdict(Reason.NONE)


class Release(NamedTuple):
    """A manifest and its files."""

    manifest: Manifest
    data: bytes
    digest: str
    files: dict[str, bytes]

    @property
    def target(self) -> str:
        return f"bundles/{self.manifest.name}/{self.manifest.version}/{self.digest[7:]}.manifest.json"


def make_release(
    version: str,
    tensors: dict[str, bytes],
    *,
    epoch: int = 1,
    base: str = "",
    settings: bytes = b"{}",
    **changes: object,
) -> Release:
    """A release whose model file is its tensors one after another.

    Args:
        tensors: name → bytes, a segment each; empty for a light release.
        settings: bytes of a second, small file without segments.
    """
    weights = b"".join(tensors.values())
    segments = tuple(Segment(len(data), digest_bytes(data), name) for name, data in tensors.items())
    files = {"generation.json": settings}
    listed = [BundleFile("generation.json", len(settings), digest_bytes(settings))]
    if tensors:
        files["model/weights.bin"] = weights
        listed.append(BundleFile("model/weights.bin", len(weights), digest_bytes(weights), segments))
    manifest = Manifest(
        schema=1,
        name="toy",
        version=version,
        created="2026-01-01T00:00:00Z",
        epoch=epoch,
        kind="light" if base else "full",
        target="gguf",
        entry="model/weights.bin",
        settings=Settings(context_tokens=64, ubatch_tokens=16, threads=1, kv_type="f16"),
        files=tuple(listed),
        compat=Compat(arch=(), runtimes=("toy",)),
        install_bytes=len(weights) + len(settings),
        health=Health(probation_s=1.0),
        base=base,
    )
    manifest = msgspec.structs.replace(manifest, **changes)
    data = encode_json(manifest)
    return Release(manifest, data, digest_bytes(data), files)


def random_tensors(seed: int, count: int = 6, size: int = 300) -> dict[str, bytes]:
    dice = random.Random(seed)
    return {f"t{index}": dice.randbytes(size + 7 * index) for index in range(count)}


class Repository:
    """Proven manifests and blobs in memory; a Fetcher and a TrustSource. What a test puts into `broken` goes wrong."""

    def __init__(self, *releases: Release) -> None:
        self.manifests = {
            release.target: Proven(release.manifest, release.data, release.digest, release.target)
            for release in releases
        }
        self.blobs = {digest_bytes(data): data for release in releases for data in release.files.values()}
        self.requests: list[tuple[str, int, int]] = []
        self.sent = 0

    def manifest(self, target: str, *, digest: str = "") -> Proven:
        if target not in self.manifests:
            raise TrustError(f"{target} is not a target of this repository")
        return self.manifests[target]

    def fetch(self, digest: str, start: int, end: int, spend: Callable[[int], None]) -> Iterator[bytes]:
        self.requests.append((digest, start, end))
        for offset in range(start, end, 256):
            data = self.blobs[digest][offset : min(end, offset + 256)]
            self.sent += len(data)
            spend(len(data))
            yield data

    def close(self) -> None:
        pass


class ManualClock:
    """Time passes when someone sleeps."""

    def __init__(self) -> None:
        self.time = 1_800_000_000.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self.time

    def is_set(self) -> bool | None:
        return None

    def monotonic(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds


class Device:
    """An agent's folder with its updater. Make a new one of the same folder for a restart."""

    def __init__(
        self,
        folder: Path,
        repository: Repository,
        *,
        disk: Disk | None = None,
        limits: Limits = Limits(disk_floor_bytes=0),
        test: Verdict = FIT,
        watch: Verdict = FIT,
        canceled: Callable[[Action], bool] = lambda _: False,
        fetcher: object = None,
    ) -> None:
        self.disk = disk or Disk()
        self.clock = ManualClock()
        self.reports: list[Action] = []
        self.serves = ""
        self.tested: list[str] = []
        self._test, self._watch = test, watch
        self.home = Home(folder, self.disk)
        self.journal = Journal(self.home.state, self.disk)
        self.updater = Updater(
            self.home,
            self.journal,
            trust=lambda _: repository,
            fetcher=lambda _: fetcher or repository,  # type: ignore[return-value,arg-type]
            tester=self,
            serving=self,
            clock=self.clock,
            runtimes=lambda: {"toy": "1.0"},
            ram_bytes=1 << 30,
            limits=limits,
            report=self.reports.append,
            canceled=canceled,
            dice=random.Random(0),
        )
        self.serves = self.updater.recover()

    def install(self, release: Release, action_id: str = "") -> Action:
        """Order a release and carry it to its end."""
        self.updater.order(action_id or release.manifest.version, target=release.target, digest=release.digest)
        action = self.updater.run()
        assert action is not None
        return action

    def test(self, folder: Path, manifest: Manifest, between: Callable[[], None]) -> Verdict:
        self._halt("self-test")
        assert not damaged_files(folder, manifest.files)
        self.tested.append(folder.name)
        between()
        return self._test

    def start(self, digest: str) -> None:
        self._halt("start serving")
        assert self.home.current() == digest
        self.serves = digest

    def stop(self) -> None:
        self.serves = ""

    def watch(self, manifest: Manifest, between: Callable[[], None]) -> Verdict:
        self._halt("probation")
        between()
        return self._watch

    def _halt(self, what: str) -> None:
        if isinstance(self.disk, CrashingDisk):
            self.disk.halt(what)


def whole(folder: Path, name: str = "current") -> str:
    """Digest of the release that a link names, with every byte checked; empty if the link names none."""
    link = folder / name
    if not link.is_symlink():
        return ""
    manifest = read_manifest(link)
    assert manifest is not None, f"{name} leads nowhere"
    assert not damaged_files(link, manifest.files), f"{name} is damaged"
    assert (link / manifest.entry).is_file(), f"{name} has no model"
    digest = "sha256:" + hashlib.sha256((link / "manifest.json").read_bytes()).hexdigest()
    assert digest[7:] == link.readlink().name
    return digest
