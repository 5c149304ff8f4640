"""Golden prompts asked again, on a clock that the test turns."""

import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from edgegen.agent.disk import Disk
from edgegen.agent.golden import Answered, agreement
from edgegen.agent.home import Home
from edgegen.agent.telemetry.canary import Canaries
from edgegen.agent.telemetry.spool import Spool, Stamp
from edgegen.common.files import digest_bytes
from edgegen.records.bundle import BundleFile, Compat, Golden, Manifest
from edgegen.records.plan import Settings
from edgegen.records.telemetry import Canary, Happening, Lane, Said

HOUR = 3600.0
DIGEST = "sha256:" + "a" * 64
WEIGHTS = b"weights" * 1000
GOLDEN = (Golden((1, 2), (3, 4, 5), -1.0), Golden((6,), (7, 8), -2.0))


class Model:
    """Answers as the test says."""

    def __init__(self) -> None:
        self.digest = DIGEST
        self.busy = False
        self.asked: list[Golden] = []
        self.says: dict[int, tuple[int, ...]] = {}

    def ask_golden(self, golden: Golden) -> Answered | None:
        if self.busy:
            return None
        self.asked.append(golden)
        said = self.says.get(golden.ids[0], golden.tokens)
        return Answered(agreement(said, golden.tokens), golden.log_prob - 0.5, said, 40.0)


class Bench:
    def __init__(self, folder: Path, spool: Spool, **settings: float) -> None:
        self.home = Home(folder / "home", Disk())
        release = self.home.release(DIGEST)
        release.mkdir()
        manifest = Manifest(
            schema=1,
            name="toy",
            version="1.0.0",
            created="",
            epoch=1,
            kind="full",
            target="gguf",
            entry="model.gguf",
            settings=Settings(context_tokens=64, ubatch_tokens=64, threads=1, kv_type="f16"),
            files=(BundleFile("model.gguf", len(WEIGHTS), digest_bytes(WEIGHTS)),),
            compat=Compat(arch=(), runtimes=()),
            install_bytes=len(WEIGHTS),
            golden=GOLDEN,
        )
        (release / "manifest.json").write_bytes(msgspec.json.encode(manifest))
        self.weights = release / "model.gguf"
        self.weights.write_bytes(WEIGHTS)
        self.at_s = 1.8e9
        self.model, self.said = Model(), list[tuple[Lane, Said]]()
        self._spool, self._settings = spool, {"hours": 24.0, "hash_days": 7.0} | settings
        self.begin()

    def begin(self) -> None:
        """As after a restart of the agent."""
        self.canaries = Canaries(
            self.home,
            self.model,
            self._spool,
            lambda lane, item: self.said.append((lane, item)),
            now=lambda: Stamp(self.at_s, 0.0, "b"),
            dice=random.Random(3),
            **self._settings,
        )

    def pass_hours(self, hours: int) -> None:
        """An hour at a time, and a few looks in each."""
        for _ in range(hours):
            self.at_s += HOUR
            for _ in range(4):
                self.canaries.step()

    def canary_reports(self) -> list[Canary]:
        return [item for _, item in self.said if isinstance(item, Canary)]


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with Spool(tmp_path / "spool.db", quota_bytes=1 << 20) as opened:
        yield opened


def test_each_prompt_once_a_day_and_not_again_after_a_restart(tmp_path: Path, spool: Spool) -> None:
    bench = Bench(tmp_path, spool)
    bench.canaries.step()
    assert bench.said == []  # a release that begins to serve was just asked
    bench.pass_hours(21)
    assert bench.said == []
    bench.begin()
    bench.pass_hours(7)
    assert [item.prompt for item in bench.canary_reports()] == [0, 1]
    first = bench.canary_reports()[0]
    assert first == Canary(DIGEST, 0, 3, 3, 0.5, 40.0, None, (3, 4, 5))
    bench.begin()
    bench.pass_hours(14)
    assert len(bench.canary_reports()) == 2
    bench.pass_hours(24 * 30)
    assert 27 * 2 <= len(bench.canary_reports()) <= 35 * 2


def test_asked_for_it_answers_whatever_the_clock_says(tmp_path: Path, spool: Spool) -> None:
    bench = Bench(tmp_path, spool, hours=0.0, hash_days=0.0)
    bench.canaries.step()
    assert bench.model.asked == []
    bench.canaries.begin()
    for _ in range(4):
        bench.canaries.step()
    assert bench.model.asked == list(GOLDEN)
    for _ in range(3):
        bench.canaries.step()
    assert bench.model.asked == list(GOLDEN)


def test_a_model_that_has_something_to_do_is_asked_later(tmp_path: Path, spool: Spool) -> None:
    bench = Bench(tmp_path, spool)
    bench.canaries.step()
    bench.model.busy = True
    bench.pass_hours(40)
    assert bench.said == []
    bench.model.busy = False
    bench.canaries.step()
    assert len(bench.canary_reports()) == 1


def test_a_changed_answer_is_an_error_and_says_what_came(tmp_path: Path, spool: Spool) -> None:
    bench = Bench(tmp_path, spool)
    bench.model.says[1] = (3, 9, 9)
    bench.canaries.step()
    bench.pass_hours(28)
    lanes = {item.prompt: lane for lane, item in bench.said if isinstance(item, Canary)}
    assert lanes == {0: Lane.ERRORS, 1: Lane.NUMBERS}
    assert (bench.canary_reports()[0].agreed, bench.canary_reports()[0].ids) == (1, (3, 9, 9))


@pytest.mark.parametrize("whole", [True, False])
def test_files_are_read_once_a_week(tmp_path: Path, spool: Spool, whole: bool) -> None:
    bench = Bench(tmp_path, spool)
    bench.canaries.step()
    if not whole:
        bench.weights.write_bytes(WEIGHTS[:-1] + b"?")
    bench.pass_hours(24 * 8)
    happened = [(lane, item) for lane, item in bench.said if isinstance(item, Happening)]
    ((lane, item),) = happened
    assert (lane, item.what, item.level) == (
        (Lane.DEPLOY, "intact", "info") if whole else (Lane.DEPLOY, "damaged", "error")
    )
    assert ("model.gguf" in item.detail) is not whole
    looked = [item.intact for item in bench.canary_reports() if item.intact is not None]
    assert looked == [whole]


def test_another_release_begins_anew_and_none_is_nothing(tmp_path: Path, spool: Spool) -> None:
    bench = Bench(tmp_path, spool)
    bench.canaries.step()
    bench.at_s += 30 * HOUR
    bench.canaries.step()
    bench.model.digest = ""
    bench.canaries.step()
    bench.model.digest = DIGEST
    bench.canaries.step()
    assert [item.prompt for item in bench.canary_reports()] == [0, 0]


def test_never_is_never_and_a_clock_set_back_waits(tmp_path: Path, spool: Spool) -> None:
    bench = Bench(tmp_path, spool, hours=0.0, hash_days=0.0)
    bench.pass_hours(24 * 20)
    assert bench.said == []
    spool.remember("canary_s", 2.5e9)
    bench._settings = {"hours": 24.0, "hash_days": 0.0}
    bench.begin()
    bench.pass_hours(14)
    assert bench.said == []
    bench.pass_hours(14)
    assert len(bench.canary_reports()) == 2
