"""The API as the official client of OpenAI sees it, and as a careless or hostile one does."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from edgegen.runtime.registry import runtime_for
from edgegen.runtime.text import Text
from tests.agent.serving import make_artifact, serving

MODEL = "toy-1.0.0"
SAY = [{"role": "user", "content": "the cat walked"}]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def url(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(artifact, tmp_path_factory.mktemp("server")) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)


def _greedy(artifact: Path, ids: list[int], count: int) -> str:
    """What the runtime itself says."""
    text = Text(artifact)
    with runtime_for("gguf").open(artifact / text.artifact.model, text.artifact.settings) as session:
        return text.decode(list(session.generate(ids, max_tokens=count, stop_ids=text.artifact.eos_ids)))


def _post(url: str, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "edgegen"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")


def test_chat_is_the_templates_greedy_answer(client: openai.OpenAI, artifact: Path) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=SAY, temperature=0, max_tokens=12)
    assert answer.choices[0].message.content == _greedy(artifact, Text(artifact).conversation(SAY), 12)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(Text(artifact).conversation(SAY)), 12)


def test_a_stream_says_the_same(client: openai.OpenAI, artifact: Path) -> None:
    events = list(
        client.chat.completions.create(
            model=MODEL,
            messages=SAY,
            temperature=0,
            max_completion_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    said = "".join(event.choices[0].delta.content or "" for event in events if event.choices)
    assert said == _greedy(artifact, Text(artifact).conversation(SAY), 12)
    assert events[0].choices[0].delta.role == "assistant"
    assert events[-2].choices[0].finish_reason == "length"
    assert events[-1].usage is not None and events[-1].usage.completion_tokens == 12


def test_completions_take_text_and_ids(client: openai.OpenAI, artifact: Path) -> None:
    ids = Text(artifact).encode("the old tree")
    for prompt in ("the old tree", ids):
        answer = client.completions.create(model=MODEL, prompt=prompt, temperature=0, max_tokens=8)
        assert answer.choices[0].text == _greedy(artifact, ids, 8)
    events = client.completions.create(model=MODEL, prompt=ids, temperature=0, max_tokens=8, stream=True)
    assert "".join(event.choices[0].text for event in events) == _greedy(artifact, ids, 8)


def test_stop_ends_before_the_text(client: openai.OpenAI, artifact: Path) -> None:
    ids = Text(artifact).encode("a blue door")
    whole = _greedy(artifact, ids, 12)
    stop = whole[len(whole) // 2 :][:2]
    answer = client.completions.create(model=MODEL, prompt=ids, temperature=0, max_tokens=12, stop=[stop])
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_a_seed_draws_the_same_again(client: openai.OpenAI) -> None:
    def draw(seed: int) -> str:
        answer = client.completions.create(model=MODEL, prompt="the", temperature=1.3, seed=seed, max_tokens=10)
        return answer.choices[0].text

    assert draw(1) == draw(1) != draw(2)


def test_logprobs_belong_to_the_chosen_tokens(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=SAY, temperature=0, max_tokens=5, logprobs=True)
    assert answer.choices[0].logprobs is not None and answer.choices[0].logprobs.content is not None
    assert [entry.logprob <= 0 for entry in answer.choices[0].logprobs.content] == [True] * 5


SCHEMA = {
    "type": "object",
    "properties": {
        "device": {"enum": ["lamp", "door"]},
        "level": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 2},
    },
    "required": ["device", "tags"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_a_schema_holds_even_for_a_random_model(client: openai.OpenAI, temperature: float) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=SAY,
        temperature=temperature,
        seed=3,
        max_tokens=220,
        response_format={"type": "json_schema", "json_schema": {"name": "call", "schema": SCHEMA, "strict": True}},
    )
    assert answer.choices[0].finish_reason == "stop"
    found = json.loads(answer.choices[0].message.content or "")
    assert found["device"] in ("lamp", "door")
    assert set(found) <= {"device", "level", "tags"}
    assert all(len(tag) <= 4 for tag in found["tags"])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "not JSON"),
        ([], "not a JSON object"),
        ({"prompt": ""}, "no tokens"),
        ({}, "prompt"),
        ({"prompt": [1, "x"]}, "prompt"),
        ({"prompt": [10**9]}, "token ids"),
        ({"prompt": [5] * 5000}, "no room"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "max_tokens": "8"}, "max_tokens"),
        ({"prompt": "a", "temperature": -1}, "temperature"),
        ({"prompt": "a", "top_p": 0}, "top_p"),
        ({"prompt": "a", "repetition_penalty": 1e-39}, "repetition_penalty"),
        ({"prompt": "a", "n": 2}, "n:"),
        ({"prompt": "a", "stop": 3}, "stop"),
        ({"prompt": "a", "surprise": 1}, "surprise"),
        ({"prompt": "a", "response_format": {"type": "xml"}}, "response_format"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_request_is_refused_by_name(url: str, body: Any, said: str) -> None:
    status, answer = _post(url + "/v1/completions", body)
    assert status == 400
    assert said in answer["error"]["message"]


def test_a_schema_that_cannot_be_kept_is_refused(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "string", "pattern": "a+"}}}
    with pytest.raises(openai.BadRequestError, match="pattern"):
        client.chat.completions.create(model=MODEL, messages=SAY, response_format=form)


def test_a_client_that_leaves_frees_the_model(client: openai.OpenAI, url: str) -> None:
    stream = client.completions.create(model=MODEL, prompt="the", max_tokens=100, stream=True)
    next(iter(stream))
    stream.close()
    started = time.perf_counter()
    client.completions.create(model=MODEL, prompt="the", max_tokens=1)
    assert time.perf_counter() - started < 5
    with urllib.request.urlopen(url + "/metrics") as answer:
        text = answer.read().decode()
    assert "edgegen_requests_canceled_total 1" in text or "edgegen_requests_canceled_total 0" in text


def test_a_long_line_is_cut(client: openai.OpenAI) -> None:
    codes: list[int] = []

    def ask() -> None:
        try:
            client.completions.create(model=MODEL, prompt="the", max_tokens=100)
            codes.append(200)
        except openai.APIStatusError as error:
            codes.append(error.status_code)

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(codes) <= {200, 429}
    assert codes.count(200) >= 5


def test_health_and_metrics(url: str) -> None:
    with urllib.request.urlopen(url + "/healthz") as answer:
        health = json.load(answer)
    assert health["status"] == "ok"
    assert health["runtime"].startswith("llama.cpp ")
    with urllib.request.urlopen(url + "/metrics") as answer:
        lines = answer.read().decode().splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert float(values["edgegen_up"]) == 1
    assert float(values["edgegen_requests_total"]) > 3


def test_a_token_is_asked_for(artifact: Path, tmp_path: Path) -> None:
    with serving(artifact, tmp_path, tokens=("secret-one", "secret-two")) as url:
        body = {"prompt": "the", "max_tokens": 1}
        assert _post(url + "/v1/completions", body)[0] == 401
        assert _post(url + "/v1/completions", body, Authorization="Bearer secret")[0] == 401
        assert _post(url + "/v1/completions", body, Authorization="Bearer secret-two")[0] == 200
        assert openai.OpenAI(base_url=url + "/v1", api_key="secret-one").models.list().data[0].id == MODEL
        for path in ("/metrics", "/v1/models"):
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(url + path)
        with urllib.request.urlopen(url + "/healthz") as answer:
            assert answer.status == 200
