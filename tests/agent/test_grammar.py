"""Grammars accept what their schema does, and a random walk through one always ends as a fitting document."""

import json
import random
from typing import Any

import numpy as np
import pytest

from edgegen.agent.constrain import Constraint, TokenBytes
from edgegen.agent.grammar import Grammar, json_grammar
from edgegen.errors import ConfigError
from edgegen.runtime.sampling import Sampler, Sampling
from tests.tiny_models import make_tokenizer

CALL = {
    "type": "object",
    "properties": {
        "name": {"enum": ["on", "off", 3, None]},
        "level": {"type": ["integer", "null"]},
        "rooms": {"type": "array", "items": {"$ref": "#/$defs/room"}, "minItems": 1, "maxItems": 2},
    },
    "required": ["name", "rooms"],
    "$defs": {"room": {"anyOf": [{"type": "string", "minLength": 1, "maxLength": 3}, {"const": {"all": True}}]}},
}
TREE = {
    "type": "object",
    "properties": {"value": {"type": "number"}, "left": {"$ref": "#"}},
    "required": ["value"],
}


def _fits(schema: Any, text: str) -> bool:
    grammar = json_grammar(schema)
    return None in grammar.follow(grammar.begin(), text.encode())


@pytest.mark.parametrize(
    ("schema", "text", "fits"),
    [
        (CALL, '{"name": "on", "rooms": ["a"]}', True),
        (CALL, '{"name":3,"level":-12,"rooms":["abc",{"all": true}]}', True),
        (CALL, '{\n  "name": null,\n  "level": null,\n  "rooms": [\n    "ü"\n  ]\n}', True),
        (CALL, '{"name": "on"}', False),
        (CALL, '{"name": "up", "rooms": ["a"]}', False),
        (CALL, '{"name": "on", "rooms": []}', False),
        (CALL, '{"name": "on", "rooms": ["a", "b", "c"]}', False),
        (CALL, '{"name": "on", "rooms": ["abcd"]}', False),
        (CALL, '{"name": "on", "rooms": ["a"], "more": 1}', False),
        (CALL, '{"level": 1.5, "name": "on", "rooms": ["a"]}', False),
        (TREE, '{"value": 1, "left": {"value": -0.5e3, "left": {"value": 0}}}', True),
        (TREE, '{"value": 01}', False),
        (True, '{"a": [1, {"b": "\\u00e9\\n"}, false], "c": {}}', True),
        (True, "[1]", False),
        (True, '{"a": "\\ud83d"}', False),
        ({"type": "array"}, "[[], {}, 1.5]", True),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, '{"x": 1, "y": 2}', True),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, '{"x": "1"}', False),
        ({"type": "object", "additionalProperties": False}, "{ }", True),
    ],
)
def test_documents(schema: Any, text: str, fits: bool) -> None:
    assert _fits(schema, text) is fits


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "string", "pattern": "a"}, "pattern"),
        ({"type": "integer", "minimum": 3}, "minimum"),
        ({"type": "thing"}, "thing"),
        ({"$ref": "https://elsewhere"}, "within"),
        ({"$ref": "#/$defs/none"}, "there is no"),
        ({"$ref": "#"}, "no document"),
        ({"type": "object", "properties": {}, "required": ["x"]}, "required"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "maxItems"),
        ({"enum": []}, "enum"),
        (["no"], "not a schema"),
    ],
)
def test_what_is_refused(schema: Any, said: str) -> None:
    with pytest.raises(ConfigError, match="JSON schema") as caught:
        json_grammar(schema)
    assert said in str(caught.value)


def _walk(grammar: Grammar, dice: random.Random) -> str:
    state, written = grammar.begin(), b""
    while None not in state or (len(state) > 1 and dice.random() < 0.5):
        # Quotes and brackets more often, so that it comes to an end.
        options = sorted(grammar.first_bytes(state))
        closing = [value for value in options if value in b'"}]']
        value = dice.choice(closing if closing and dice.random() < 0.4 else options)
        written += bytes([value])
        state = grammar.follow(state, bytes([value]))
        assert state
    return written.decode()


@pytest.mark.parametrize("schema", [CALL, TREE, True, {"type": "array", "items": {"type": "number"}}], ids=str)
def test_a_random_walk_ends_as_json(schema: Any) -> None:
    for seed in range(40):
        json.loads(_walk(json_grammar(schema), random.Random(seed)))


@pytest.mark.parametrize("kind", ["bytelevel", "llama3", "sentencepiece", "gemma"])
@pytest.mark.parametrize("tries", [0, 8])
def test_random_logits_spell_a_fitting_document(kind: str, tries: int) -> None:
    tokenizer = make_tokenizer(kind)
    size = tokenizer.get_vocab_size()
    stop = tokenizer.token_to_id("</s>" if kind == "sentencepiece" else "<eos>" if kind == "gemma" else "<|im_end|>")
    dice = np.random.default_rng(1)
    constraint = Constraint(json_grammar(CALL), TokenBytes(tokenizer, size), tries=tries)
    sampler, ids = Sampler(Sampling(temperature=1.0, seed=5)), list[int]()
    while not constraint.finished:
        logits = dice.standard_normal(size).astype(np.float32)
        before = logits.copy()
        token = constraint.choose(logits, sampler, {stop})
        np.testing.assert_array_equal(logits, before)
        if token == stop:
            break
        ids.append(token)
    document = json.loads(tokenizer.decode(ids))
    assert {"name", "rooms"} <= set(document) <= {"name", "level", "rooms"}
