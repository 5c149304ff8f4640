"""One compressed file: what it says on the held-out rows, what it takes, and what it cost to make."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from edgegen.common.codec import load_json, save_json
from edgegen.records.artifact import Artifact
from edgegen.records.base import Record
from edgegen.records.plan import Plan
from edgegen.records.report import Quality
from peers.process import Cost, ProgramError, run
from peers.subject import Subject, tell

PROFILE = "raspberry-pi-4-4gb"
OURS = "edgegen"
VOCABULARY = ", vocabulary "
"""In the name of edgegen's file before what was asked of its vocabulary, where that is not to keep it."""
TIME = ", time "
"""Likewise before the time that it had for tuning."""
TIMED = ("local_search", "refinement")
"""What such time is spent on."""
_PLAN_MISSES, _NO_PLAN = 5, 4
"""Exit codes: the artifact misses a limit but is there; no plan fits."""


class Point(Record, frozen=True):
    """A file, or why there is none."""

    model: str
    target: str
    tool: str
    name: str
    """What was asked of the tool; of edgegen's: the tool and file whose bytes it may take."""
    bytes: int = 0
    """Of the model's files."""
    own_bytes: int = 0
    """Of the file that the tool wrote, where that was packed anew; 0: the same."""
    limit: int = 0
    """Of edgegen's: most bytes."""
    quality: Quality | None = None
    predicted_kl: float = 0.0
    """Of edgegen's: the plan's."""
    cost: Cost | None = None
    """Of making it, importance data and the source file in float32 not counted; edgegen's from the checkpoint on,
    verification included."""
    continued: bool = False
    """Of edgegen's: the measurements were there from a file of another size."""
    vocab_size: int = 0
    error: str = ""

    @property
    def time(self) -> str:
        """Of edgegen's: what it had for tuning; empty: none."""
        return self.name.partition(TIME)[2]

    @property
    def against(self) -> str:
        """Of edgegen's: the tool and file whose bytes it may take."""
        return self.name.partition(TIME)[0].partition(VOCABULARY)[0]

    @property
    def kl(self) -> float:
        """Nats per token; the mass of dropped tokens is counted in."""
        assert self.quality is not None, "asked of files that were scored"
        return self.quality.kl.value + self.quality.lost_mass_nats


class Made(NamedTuple):
    """What a tool wrote."""

    files: tuple[str, ...]
    """The model's, the one to be opened first."""
    cost: Cost
    own_bytes: int = 0
    """As `Point.own_bytes`."""


class Scorer:
    """Scores files of one checkpoint on the same windows, and keeps what was found."""

    def __init__(self, subject: Subject, data: str) -> None:
        """Run edgegen once without rounding, for what the original says and for importance weights."""
        self.subject, self.data = subject, data
        self.place = subject.place
        self.base = self.place / "base"
        if not (self.base / "report.json").exists():
            tell(f"{subject.model.name}: asking the original")
            self._compress("gguf", self.base, "--grids", "f32", "--max-kl", "1", "--rounding", "plain")
        (self.place / "points").mkdir(exist_ok=True)

    @property
    def source(self) -> Path:
        """The GGUF file in float32."""
        return self.base / "artifact" / "model.gguf"

    def peer(self, target: str, tool: str, name: str, make: Callable[[Path], Made]) -> Point:
        """Another tool's file.

        Args:
            make: writes the model's files into a folder.
        """

        def work(blank: Point) -> Point:
            found: list[Made] = []

            def fill(place: Path) -> tuple[str, ...]:
                found.append(make(place))
                return found[0].files

            folder = self.subject.beside(self.base / "artifact", f"{tool} {name}", fill, target=target)
            try:
                return self._scored(
                    msgspec.structs.replace(blank, cost=found[0].cost, own_bytes=found[0].own_bytes), folder
                )
            finally:
                shutil.rmtree(folder)

        return self._kept(Point(model=self.subject.model.name, target=target, tool=tool, name=name), work)

    def ours(self, target: str, against: Point, vocab: str, time: str = "") -> Point:
        """edgegen's file with at most as many bytes.

        Args:
            time: for tuning, like 10m; empty: none.
        """
        name = f"{against.tool} {against.name}" + ("" if vocab == "keep" else f"{VOCABULARY}{vocab}")
        more = ("--budget", time, "--techniques", ",".join(TIMED)) if time else ()
        name += f"{TIME}{time}" if time else ""

        def work(blank: Point) -> Point:
            out = self.place / f"ours-{target}-{vocab}"
            continued = out.exists() or out.with_name(f"{out.name}.partial").exists()
            limit = against.bytes
            cost = self._compress(target, out, "--max-bytes", str(limit), *more, vocab=vocab)
            while (over := load_json(out / "artifact" / "artifact.json", Artifact).model_bytes - against.bytes) > 0:
                limit -= over  # a runtime's file may be some bytes larger than was planned
                self._compress(target, out, "--max-bytes", str(limit), *more, vocab=vocab)
            plan = load_json(out / "plan.json", Plan)
            point = msgspec.structs.replace(
                blank, cost=cost, continued=continued, predicted_kl=plan.prediction.kl, vocab_size=plan.vocabulary.size
            )
            return self._scored(point, out / "artifact", out / "reference" if vocab != "keep" else None)

        blank = Point(model=self.subject.model.name, target=target, tool=OURS, name=name, limit=against.bytes)
        return self._kept(blank, work)

    def _compress(self, target: str, out: Path, *more: str, vocab: str = "keep") -> Cost:
        command = [sys.executable, "-m", "edgegen", "compress", str(self.subject.model), "--profile", PROFILE]
        command += ["--data", self.data, "--target", target, "--vocab", vocab, "--out", str(out), "--quiet", *more]
        return run(command, codes=(0, _PLAN_MISSES))

    def _kept(self, blank: Point, work: Callable[[Point], Point]) -> Point:
        """A point that was found before, or the work's; what failed is tried again the next time."""
        key = hashlib.sha256(f"{blank.target} {blank.tool} {blank.name} {blank.limit}".encode()).hexdigest()[:16]
        path = self.place / "points" / f"{key}.json"
        if path.exists():
            return load_json(path, Point)
        try:
            found = work(blank)
            save_json(path, found)
        except ProgramError as error:
            found = msgspec.structs.replace(blank, error=str(error))
        said = f"{found.bytes:,} bytes, KL {found.kl:.5f}" if found.quality else found.error.splitlines()[-1][:200]
        tell(f"{found.model}, {found.target}, {found.tool} {found.name}: {said}")
        return found

    def _scored(self, point: Point, folder: Path, reference: Path | None = None) -> Point:
        found = self.place / "points" / f".{folder.name}.quality.json"
        against = reference or self.base / "reference"
        try:
            run([sys.executable, "-m", "peers.score", str(folder), str(against), str(found)])
            quality = load_json(found, Quality)
        finally:
            found.unlink(missing_ok=True)
        size = load_json(folder / "artifact.json", Artifact).model_bytes
        return msgspec.structs.replace(point, bytes=size, quality=quality)


def front(points: Iterable[Point]) -> list[Point]:
    """Those that no smaller or equally large one beats, smallest first."""
    found: list[Point] = []
    for point in sorted((p for p in points if p.quality), key=lambda p: (p.bytes, p.kl)):
        if not found or point.kl < found[-1].kl:
            found.append(point)
    return found


def spread(points: Sequence[Point], most: int) -> list[Point]:
    """At most so many of a front, evenly over their ranks; the ends stay."""
    if len(points) <= most:
        return list(points)
    picked = {round(index * (len(points) - 1) / (most - 1)) for index in range(most)}
    return [points[index] for index in sorted(picked)]
