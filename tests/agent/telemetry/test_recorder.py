"""What becomes of an answer at each level of privacy, and what never touches the disk."""

import datetime
import random
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgegen.agent.seen import Seen
from edgegen.agent.telemetry.hashing import BINS, LEAST_TEXTS, MOST_TEXTS, Window, hashed
from edgegen.agent.telemetry.recorder import Recorder, Served
from edgegen.agent.telemetry.sensors import Sensors
from edgegen.agent.telemetry.settings import Telemetry
from edgegen.agent.telemetry.spool import Spool
from edgegen.agent.telemetry.writer import Writer
from edgegen.common.codec import save_json
from edgegen.errors import ConfigError, DeviceError
from edgegen.records.artifact import Artifact
from edgegen.records.plan import Settings
from edgegen.records.telemetry import (
    Embedding,
    Feedback,
    Generation,
    Happening,
    Item,
    Privacy,
    Report,
    Sample,
)
from edgegen.runtime.text import Text
from tests.agent.serving import TEMPLATE
from tests.tiny_models import make_tokenizer

SECRET = "anna.lee@example.com"
P2: dict[str, Any] = {"privacy": Privacy.REDACTED, "sample_fraction": 1.0}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    """A tokenizer and a template; there is no model."""
    folder = tmp_path_factory.mktemp("text")
    make_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_bytes(msgspec.json.encode({"chat_template": TEMPLATE}))
    artifact = Artifact(
        schema=1,
        target="gguf",
        model="none.gguf",
        model_files=(),
        files=(),
        family="llama",
        parameters=0,
        vocab_size=400,
        context_tokens=256,
        settings=Settings(context_tokens=256, ubatch_tokens=64, threads=1, kv_type="f16"),
        bos_id=None,
        eos_ids=(),
        add_bos=False,
        parent="",
        tokenizer_proof="",
    )
    save_json(folder / "artifact.json", artifact)
    return Text(folder)


class Bench:
    """A recorder over a spool in a folder."""

    def __init__(self, folder: Path, text: Text, now: Callable[[], float] = lambda: 1.8e9, **settings: Any) -> None:
        self.folder = folder
        self._writer = Writer(self._open, tell=lambda _: None)
        served = Served("sha256:r", "toy 1.0", 2, text)
        self.recorder = Recorder(
            Telemetry(**settings), served, self._writer, now=now, dice=random.Random(0), sensors=Sensors(folder)
        )
        self._text = text

    def _open(self) -> Spool:
        return Spool(self.folder / "spool.db", quota_bytes=8 << 20)

    def seen(self, prompt: str, answer: str, stop: str = "stop", **more: Any) -> Seen:
        """An answer that ended."""
        found = Seen("id-1", tuple(self._text.encode(prompt)), **more)
        found.tokens, found.pieces, found.stop = self._text.encode(ascii(answer)) if answer else [], [answer], stop
        return found

    def answer(self, prompt: str = "the cat", answer: str = "the old tree", **more: Any) -> None:
        """Record one."""
        self.recorder.answered(self.seen(prompt, answer, **more))

    def items(self) -> list[Item]:
        """What was recorded; closes."""
        self.recorder.close()
        self._writer.close()
        with self._open() as spool:
            return [msgspec.json.decode(line, type=Report).item for line in spool.waiting(1000)]

    def holds(self, secret: str) -> bool:
        """Whether any of the spool's files has it in its bytes."""
        assert self._writer.flush()
        paths = list(self.folder.glob("spool.db*"))
        assert any(path.name.endswith("-wal") for path in paths)
        return any(secret.encode() in path.read_bytes() for path in paths)


def only(items: list[Item], kind: type) -> Any:
    (found,) = [item for item in items if isinstance(item, kind)]
    return found


def test_at_p0_there_are_numbers_and_no_text(tmp_path: Path, text: Text) -> None:
    bench = Bench(tmp_path, text, embedding=True)
    error = DeviceError(f"the model failed: ValueError: {SECRET}")
    for _ in range(MOST_TEXTS):
        bench.answer(f"write to {SECRET}", f"I wrote to {SECRET}")
    failed = bench.seen("a", "")
    failed.stop, failed.error, failed.foreign = "error", error, "ValueError"
    bench.recorder.answered(failed)
    bench.recorder.feedback("id-1", -1, f"tell {SECRET}")
    assert not bench.holds(SECRET) and not bench.holds("anna")
    items = bench.items()
    assert {type(item) for item in items} == {Generation, Feedback}
    first = items[1]
    assert isinstance(items[0], Generation) and items[0].error == "ValueError" and items[0].stop == "error"
    assert isinstance(first, Generation) and first.features is not None
    assert first.features.characters == len(f"I wrote to {SECRET}") and first.missing == {}
    assert (first.release, first.runtime, first.threads, first.stop) == ("sha256:r", "toy 1.0", 2, "stop")
    assert len(first.template) == 12
    assert first.ttft_s is None and first.tokens_per_s is None and first.temperature_c is None
    assert first.mean_log_prob is None and first.rss_bytes is not None and first.rss_bytes > 0


def test_numbers_of_a_generation(tmp_path: Path, text: Text) -> None:
    bench = Bench(tmp_path, text)
    seen = Seen("id-2", (1, 2, 3), wants_json=True, likelihood_fraction=1.0, queue_s=0.25, begun_s=10.0)
    logits = np.log(np.array([0.5, 0.25, 0.25], dtype=np.float32))
    for token in (0, 1, 1):
        seen.token(token, logits)
    seen.first_s, seen.last_s, seen.pieces, seen.stop = 10.5, 11.5, ["{}"], "length"
    bench.recorder.answered(seen)
    found = only(bench.items(), Generation)
    assert (found.prompt_tokens, found.answer_tokens, found.queue_s, found.ttft_s) == (3, 3, 0.25, 0.5)
    assert found.tokens_per_s == 2.0 and found.distinct_fraction == pytest.approx(2 / 3, rel=1e-5)
    assert found.mean_log_prob == pytest.approx(np.log([0.5, 0.25, 0.25]).mean(), rel=1e-5)
    assert found.mean_entropy == pytest.approx(1.5 * np.log(2), rel=1e-5)
    assert found.features.json_valid is True


def test_likelihood_is_thinned_to_its_share_of_the_time() -> None:
    logits = np.zeros(200_000, dtype=np.float32)
    seen = Seen("x", (1,), likelihood_fraction=1e-6)
    for _ in range(50):
        seen.token(1, logits)
    assert seen._measured == 1 and seen.mean_entropy == pytest.approx(np.log(200_000), rel=1e-5)
    off = Seen("x", (1,))
    off.token(1, logits)
    assert off.mean_log_prob is None


def test_at_p1_vectors_leave_and_no_text(tmp_path: Path, text: Text) -> None:
    bench = Bench(tmp_path, text, privacy=Privacy.FEATURES, embedding=True)
    for _ in range(MOST_TEXTS + LEAST_TEXTS - 1):
        bench.answer(answer=f"write to {SECRET}")
    assert not bench.holds(SECRET)
    found = [item for item in bench.items() if isinstance(item, Embedding)]
    assert [(item.what, item.n, len(item.mean)) for item in found] == [
        ("answers", MOST_TEXTS, BINS),
        ("prompts", MOST_TEXTS, BINS),
    ]  # what is too few at the end is not reported
    assert max(found[0].variance) == 0.0


def test_vectors_tell_texts_apart() -> None:
    cat, dog = hashed("the cat sat on the mat"), hashed("ein Hund lief durch den Wald")
    assert cat @ cat == pytest.approx(1) and cat @ hashed("The cat sat on a mat") > 0.7 > 0.3 > cat @ dog
    assert not hashed("ab").any() and hashed("\ud800abc").any()
    window = Window("r", "answers")
    assert window.take() is None
    for _ in range(LEAST_TEXTS - 1):
        assert window.add("abc") is None
    assert window.take() is None
    window.add("abd")
    found = window.take()
    assert found is not None and found.n == LEAST_TEXTS
    assert sum(found.variance) == pytest.approx(2 * (15 / 16) * (1 / 16), rel=1e-3)


def test_at_p2_texts_are_redacted_before_they_touch_the_disk(tmp_path: Path, text: Text) -> None:
    bench = Bench(tmp_path, text, **P2)
    bench.answer(f"mail {SECRET}", f"sent to {SECRET} and 4111 1111 1111 1111")
    bench.recorder.feedback("id-1", -1, f"why {SECRET}?")
    for secret in (SECRET, "4111", "anna"):
        assert not bench.holds(secret)
    items = bench.items()
    samples = [item for item in items if isinstance(item, Sample)]
    assert [sample.why for sample in samples] == ["sampled", "feedback"]
    assert samples[0].answer == "sent to [email] and [card]"
    assert "[email]" in samples[0].prompt and samples[0].level is Privacy.REDACTED
    assert samples[0].redactions == 3 and not samples[0].cut
    assert only(items, Feedback) == Feedback("id-1", -1, "why [email]?")


def test_a_fraction_is_sampled_and_errors_always(tmp_path: Path, text: Text) -> None:
    bench = Bench(tmp_path, text, **P2 | {"sample_fraction": 0.25})
    for _ in range(200):
        bench.answer()
    failed = bench.seen("b", "half an")
    failed.stop, failed.error = "error", DeviceError(f"no memory for {SECRET}")
    bench.recorder.answered(failed)
    items = bench.items()
    why = [item.why for item in items if isinstance(item, Sample)]
    assert why.count("error") == 1 and 30 <= why.count("sampled") <= 70
    error = next(item.error for item in items if isinstance(item, Generation) and item.error)
    assert error == "DeviceError: no memory for [email]"


def test_a_hook_that_fails_costs_the_text_and_not_the_numbers(
    tmp_path: Path, text: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("my_hook")

    def clean(words: str) -> str:
        raise ValueError(words)

    module.clean = clean  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_hook", module)
    bench = Bench(tmp_path, text, **P2, hook="my_hook:clean")
    for _ in range(5):
        bench.answer("quokka", "wombat")
    bench.recorder.feedback("id-1", 1, "platypus")
    assert not any(bench.holds(word) for word in ("quokka", "wombat", "platypus"))
    items = bench.items()
    assert sum(isinstance(item, Generation) for item in items) == 5
    assert only(items, Feedback).comment == ""
    said = only(items, Happening)  # once, not at every answer
    assert said.what == "redaction-failed" and "ValueError" in said.detail


def test_a_hook_that_is_not_there_keeps_all_text_away(tmp_path: Path, text: Text) -> None:
    bench = Bench(tmp_path, text, **P2, hook="no_such_module:f")
    bench.answer("quokka", "wombat")
    assert not bench.holds("wombat")
    items = bench.items()
    assert only(items, Generation) and not any(isinstance(item, Sample) for item in items)
    assert any("no_such_module" in item.detail for item in items if isinstance(item, Happening))


def test_full_text_ends_with_its_last_day(tmp_path: Path, text: Text) -> None:
    end = datetime.datetime(2027, 3, 2, tzinfo=datetime.UTC).timestamp()
    now = [end - 1]
    full = {"privacy": Privacy.FULL, "full_until": datetime.date(2027, 3, 1), "sample_fraction": 1.0}
    bench = Bench(tmp_path, text, now=lambda: now[0], **full, after_full=Privacy.REDACTED)
    bench.answer(answer=f"one {SECRET}")
    assert bench.holds(SECRET)
    now[0] = end
    bench.recorder.feedback("id-1", -1, "")  # its text was kept in memory when full text was allowed
    bench.answer(answer=f"two {SECRET}")
    samples = [item for item in bench.items() if isinstance(item, Sample)]
    assert [(sample.level, sample.answer) for sample in samples] == [
        (Privacy.FULL, f"one {SECRET}"),
        (Privacy.REDACTED, "two [email]"),
    ]
    config = Telemetry(**full)  # type: ignore[arg-type]
    assert [config.level(at) for at in (end - 1, end, 100.0)] == [Privacy.FULL, Privacy.NUMBERS, Privacy.NUMBERS]


def test_long_and_strange_texts_fit_a_report(tmp_path: Path, text: Text) -> None:
    bench = Bench(tmp_path, text, **P2)
    bench.answer(answer="\x01" * 40_000)
    bench.answer(answer="word " * 40_000)
    bench.answer(answer="half \ud83d of a sign")
    samples = [item for item in bench.items() if isinstance(item, Sample)]
    assert [sample.cut for sample in samples] == [True, True, False]
    assert samples[0].answer.startswith("\x01") and samples[2].answer.startswith("half ?")


def test_a_secret_at_the_cut_does_not_show_in_half(tmp_path: Path, text: Text) -> None:
    bench = Bench(tmp_path, text, **P2)
    filler = "EM@a.bcd " * 5000  # shrinks to tags, so that the cut comes into what is kept
    bench.answer(answer=(filler + " ")[: 48_000 - 10] + " 4111111111111111")
    assert not bench.holds("41111")
    assert bench.items()


def test_bytes_of_missing_characters_are_told_from_p2_on(tmp_path: Path, text: Text) -> None:
    lone = "\u20ac"
    for settings, expected in (({}, False), (P2, True)):
        folder = tmp_path / str(expected)
        folder.mkdir()
        bench = Bench(folder, text, **settings)
        bench.answer(f"price {lone}")
        found = only(bench.items(), Generation)
        if found.byte_fraction is None:
            pytest.skip("this vocabulary has no bytes")
        assert found.byte_fraction > 0 and (found.missing == {lone: 1}) is expected


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"privacy": Privacy.FULL}, "full_until"),
        ({"privacy": Privacy.FULL, "full_until": datetime.date(2030, 1, 1), "after_full": Privacy.FULL}, "after_full"),
        ({"sample_fraction": 1.5}, "sample_fraction"),
        ({"quota_bytes": 10}, "quota_bytes"),
        ({"retention_days": {"txt": 1.0}}, "retention_days"),
        ({"hook": "os.system"}, "hook"),
        ({"transport": "mqtt"}, "mqtt.host"),
        ({"redact_rules": "/no/such"}, "no such file"),
        ({"refusals_file": "/no/such"}, "cannot be read"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], said: str) -> None:
    from edgegen.agent.telemetry.settings import check_telemetry

    with pytest.raises(ConfigError, match=said):
        check_telemetry(Telemetry(**settings), fleet=True)
