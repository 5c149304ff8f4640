"""The real serving process: what it writes down of real answers, and what users think of them."""

import asyncio
import contextlib
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest

from edgegen.agent.engine import Ask, Engine
from edgegen.agent.golden import Answered
from edgegen.agent.seen import Seen
from edgegen.agent.serve import Reporting
from edgegen.agent.telemetry.settings import Telemetry
from edgegen.agent.telemetry.spool import Spool
from edgegen.records.bundle import Golden
from edgegen.records.telemetry import Feedback, Generation, Item, Privacy, Report, Sample
from edgegen.runtime.registry import runtime_for
from edgegen.runtime.text import Text
from tests.agent.serving import make_artifact, serving

pytestmark = pytest.mark.slow
OWN = "the-agents-own-secret"
SAY: Any = [{"role": "user", "content": "the cat walked"}]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("reporting"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def url(artifact: Path, place: Path) -> Iterator[str]:
    config = Telemetry(enabled=True, privacy=Privacy.REDACTED, sample_fraction=1.0, likelihood_fraction=1.0)
    reporting = Reporting(config, str(place / "spool.db"), 8 << 20)
    with serving(artifact, place, own=OWN, reporting=reporting) as address:
        yield address


@pytest.fixture
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)


def items(place: Path) -> list[Item]:
    """What was recorded so far."""
    with Spool(place / "spool.db", quota_bytes=8 << 20) as spool:
        return [msgspec.json.decode(line, type=Report).item for line in spool.waiting(10_000)]


def waited(find: Callable[[], Any], timeout_s: float = 60) -> Any:
    until = time.monotonic() + timeout_s
    while not (found := find()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return found


def generation(place: Path, name: str) -> Generation:
    """The report of one answer, when it is there."""
    found: Generation = waited(
        lambda: next((item for item in items(place) if isinstance(item, Generation) and item.id == name), None)
    )
    return found


def post(url: str, body: Any, token: str = "none") -> tuple[int, dict[str, Any]]:
    headers = {"Authorization": f"Bearer {token}"}
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_an_answer_is_written_down(client: openai.OpenAI, place: Path, artifact: Path) -> None:
    answer = client.chat.completions.create(
        model="toy-1.0.0", messages=SAY, temperature=0, max_tokens=12, logprobs=True
    )
    found = generation(place, answer.id)
    assert answer.usage is not None and answer.choices[0].logprobs is not None
    assert (found.prompt_tokens, found.answer_tokens) == (answer.usage.prompt_tokens, 12)
    assert (found.stop, found.error, found.release) == ("length", "", "sha256:" + "0" * 64)
    assert found.runtime.startswith("llama.cpp ") and found.threads == Text(artifact).artifact.settings.threads
    assert found.ttft_s is not None and found.ttft_s > 0 and found.queue_s is not None
    assert found.tokens_per_s is not None and found.tokens_per_s > 0
    told = [entry.logprob for entry in answer.choices[0].logprobs.content or ()]
    # The first token's measuring is ahead of the share of time that it may take, so some may be left out.
    assert found.mean_log_prob is not None and min(told) - 1e-3 <= found.mean_log_prob <= max(told) + 1e-3
    assert found.mean_entropy is not None and found.mean_entropy > 0
    assert found.features is not None and found.features.characters == len(answer.choices[0].message.content or "")
    assert found.rss_bytes and found.peak_rss_bytes and found.peak_rss_bytes >= found.rss_bytes
    sample = waited(
        lambda: next((item for item in items(place) if isinstance(item, Sample) and item.generation == answer.id), None)
    )
    assert "the cat walked" in sample.prompt and sample.answer == answer.choices[0].message.content


def test_json_and_streams_and_clients_that_leave(client: openai.OpenAI, place: Path, url: str) -> None:
    answer = client.chat.completions.create(
        model="toy-1.0.0", messages=SAY, max_tokens=8, response_format={"type": "json_object"}, seed=1
    )
    found = generation(place, answer.id)
    assert found.features is not None and found.features.json_valid is not None
    stream = client.completions.create(model="toy-1.0.0", prompt="the", max_tokens=200, stream=True, temperature=0)
    first = next(iter(stream))
    stream.close()
    found = generation(place, first.id)
    assert found.stop in ("canceled", "length", "stop")


def test_what_the_agent_asks_is_not_reported(place: Path, url: str, artifact: Path) -> None:
    before = sum(isinstance(item, Generation) for item in items(place))
    status, said = post(url + "/v1/completions", {"prompt": "the", "max_tokens": 2}, OWN)
    assert status == 200
    ids = Text(artifact).encode("the old")
    with runtime_for("gguf").open(next(artifact.glob("*.gguf")), Text(artifact).artifact.settings) as session:
        tokens = tuple(session.generate(ids, max_tokens=6))
    golden = msgspec.to_builtins(Golden(tuple(ids), tokens, -1.0))
    status, said = post(url + "/edgegen/golden", golden, OWN)
    answered = msgspec.convert(said, Answered)
    assert status == 200 and answered.prefix == 6 and answered.tokens == tokens and answered.log_prob < 0
    assert post(url + "/edgegen/golden", golden)[0] == 404
    assert post(url + "/edgegen/golden", {"ids": "x"}, OWN)[0] == 400
    assert post(url + "/edgegen/golden", golden | {"ids": [10**6]}, OWN)[0] == 400
    post(url + "/v1/completions", {"prompt": "mark", "max_tokens": 1})
    waited(lambda: sum(isinstance(item, Generation) for item in items(place)) > before)
    assert sum(isinstance(item, Generation) for item in items(place)) == before + 1


def test_feedback_goes_with_its_answer(client: openai.OpenAI, place: Path, url: str) -> None:
    answer = client.completions.create(model="toy-1.0.0", prompt="a blue", max_tokens=3)
    for rating, number in (("up", 1), ("down", -1), (1, 1), (-1, -1)):
        status, said = post(url + "/v1/feedback", {"id": answer.id, "rating": rating, "comment": "ask a@b.example"})
        assert (status, said["rating"]) == (200, number)
    found = waited(lambda: found if len(found := [i for i in items(place) if isinstance(i, Feedback)]) == 4 else None)
    assert {item.comment for item in found} == {"ask [email]"}
    assert {item.generation for item in found} == {answer.id}
    for body, code in [
        ({"id": "cmpl-unknown", "rating": 1}, 404),
        ({"id": answer.id, "rating": 2}, 400),
        ({"id": answer.id, "rating": True}, 400),
        ({"id": answer.id, "rating": "fine"}, 400),
        ({"id": answer.id}, 400),
        ({"id": "", "rating": 1}, 400),
        ({"id": answer.id, "rating": 1, "comment": 3}, 400),
        ({"id": answer.id, "rating": 1, "stars": 3}, 400),
        (b"{", 400),
        (b'{"id": "\\ud800", "rating": 1}', 400),
    ]:
        assert post(url + "/v1/feedback", body)[0] == code, body


def test_feedback_after_a_restart_and_without_telemetry(artifact: Path, tmp_path: Path) -> None:
    reporting = Reporting(Telemetry(enabled=True), str(tmp_path / "spool.db"), 8 << 20)
    with serving(artifact, tmp_path, reporting=reporting) as url:
        name = post(url + "/v1/completions", {"prompt": "the", "max_tokens": 2})[1]["id"]
    # It ended in order, so what it had recorded is on the disk.
    assert [item.id for item in items(tmp_path) if isinstance(item, Generation)] == [name]
    with serving(artifact, tmp_path, reporting=reporting) as url:
        assert post(url + "/v1/feedback", {"id": name, "rating": "up", "comment": "nice"})[0] == 200
    assert [item for item in items(tmp_path) if isinstance(item, Feedback)] == [Feedback(name, 1)]
    with serving(artifact, tmp_path) as url:
        assert post(url + "/v1/feedback", {"id": name, "rating": "up"})[0] == 501


def test_a_disk_that_takes_nothing_does_not_keep_the_model_from_answering(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "spool.db").mkdir()
    reporting = Reporting(Telemetry(enabled=True), str(tmp_path / "spool.db"), 8 << 20)
    with serving(artifact, tmp_path, reporting=reporting) as url:
        for _ in range(3):
            status, said = post(url + "/v1/completions", {"prompt": "the", "max_tokens": 2})
            assert status == 200
        with contextlib.suppress(OSError):
            (tmp_path / "spool.db").rmdir()
        assert post(url + "/v1/feedback", {"id": said["id"], "rating": "up"})[0] == 200


@pytest.mark.parametrize("ask", [Ask((1, 2, 3), 3), Ask((), 3)], ids=["answered", "failed"])
def test_an_answer_is_known_before_its_reader_hears_that_it_is_over(artifact: Path, ask: Ask) -> None:
    known = threading.Event()

    def watch(seen: Seen) -> None:
        time.sleep(0.2)  # longer than a reader needs
        known.set()

    async def read(engine: Engine) -> bool:
        job = engine.submit(ask, name="one")
        while True:
            piece = await job.pieces.get()
            if piece.ended or piece.error is not None:
                return known.is_set()

    with Engine(artifact, settings=Text(artifact).artifact.settings, watch=watch) as engine:
        assert asyncio.run(read(engine))
