"""JSON Schema → a grammar over bytes that can be followed one byte at a time.

A grammar is a table of nodes; a state is a set of stacks of node numbers, each a way in which the bytes so far may go
on. JSON never recurses without a byte before, so following a byte ends. Bytes, not characters: tokens split characters,
and so an answer is valid UTF-8 at every token.

What a schema may use: `type` (also a list), `properties`, `required`, `additionalProperties`, `items`, `minItems`,
`maxItems`, `minLength`, `maxLength`, `enum`, `const`, `anyOf`, `oneOf` (taken as `anyOf`), `allOf` of one, `$ref`
within the document, and the keywords that only describe. Objects have the properties that the schema names, in its
order; where it names none, any. Other keywords are refused by name: an answer that breaks the schema would be worse
than none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from edgegen.errors import ConfigError

Stack = tuple[int, Any] | None
"""Node to come next, and what follows it; None: the end."""
State = frozenset[Stack]

_DESCRIBING = frozenset(
    {"$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default", "examples"}
    | {"deprecated", "readOnly", "writeOnly"}
)
_UNDERSTOOD = _DESCRIBING | {
    *("type", "properties", "required", "additionalProperties", "items", "minItems", "maxItems"),
    *("minLength", "maxLength", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"),
}
_DEEPEST = 64
_LONGEST_SPACE = 16
_DIGITS = 15
"""Most digits of a number's part: what a float64 holds exactly."""


class Grammar:
    """Nodes of four kinds, by number: a set of bytes, a sequence, a choice, a repetition."""

    def __init__(self) -> None:
        self._nodes: list[tuple[Any, ...]] = []
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._expanded: dict[Stack, tuple[Stack, ...]] = {}
        self.start = -1

    def byte(self, *ranges: tuple[int, int]) -> int:
        """One byte in one of these inclusive ranges."""
        return self._node(("byte", frozenset(b for low, high in ranges for b in range(low, high + 1))))

    def text(self, data: bytes) -> int:
        """These bytes."""
        return self.sequence(*(self.byte((value, value)) for value in data))

    def sequence(self, *parts: int) -> int:
        """One after the other."""
        return parts[0] if len(parts) == 1 else self._node(("sequence", parts))

    def choice(self, *parts: int) -> int:
        """One of them."""
        kept = tuple(dict.fromkeys(parts))
        return kept[0] if len(kept) == 1 else self._node(("choice", kept))

    def repeat(self, part: int, least: int = 0, most: int | None = None) -> int:
        """A part that is not empty, from `least` to `most` times."""
        return self._node(("repeat", part, least, most))

    def later(self) -> int:
        """A node that is filled in with `fill`."""
        self._nodes.append(("sequence", ()))
        return len(self._nodes) - 1

    def fill(self, number: int, part: int) -> None:
        """Let a node from `later` stand for another."""
        self._nodes[number] = ("sequence", (part,))

    def begin(self) -> State:
        """Before the first byte."""
        return frozenset(self._expand((self.start, None)))

    def follow(self, state: State, data: bytes) -> State:
        """After these bytes; empty if they cannot come here."""
        for value in data:
            after: set[Stack] = set()
            for stack in state:
                if stack is not None and value in self._nodes[stack[0]][1]:
                    after.update(self._expand(stack[1]))
            if not after:
                return frozenset()
            state = frozenset(after)
        return state

    def leads_on(self, number: int) -> bool:
        """Whether a node comes to a byte or an end at all; one that only refers to itself does not."""
        return bool(self._expand((number, None)))

    def first_bytes(self, state: State) -> frozenset[int]:
        """Bytes that can come next."""
        return frozenset().union(*(self._nodes[stack[0]][1] for stack in state if stack is not None))

    def _node(self, node: tuple[Any, ...]) -> int:
        if node not in self._numbers:
            self._nodes.append(node)
            self._numbers[node] = len(self._nodes) - 1
        return self._numbers[node]

    def _expand(self, stack: Stack) -> tuple[Stack, ...]:
        """Stacks with a byte on top, or the end, that this one comes to without a byte."""
        found = self._expanded.get(stack)
        if found is not None:
            return found
        results: set[Stack] = set()
        waiting, seen = [stack], {stack}
        while waiting:
            current = waiting.pop()
            if current is None or self._nodes[current[0]][0] == "byte":
                results.add(current)
                continue
            for following in self._unfold(current):
                if following not in seen:
                    seen.add(following)
                    waiting.append(following)
        self._expanded[stack] = tuple(results)
        return self._expanded[stack]

    def _unfold(self, stack: tuple[int, Any]) -> Iterable[Stack]:
        kind, *rest = self._nodes[stack[0]]
        below = stack[1]
        if kind == "sequence":
            for part in reversed(rest[0]):
                below = (part, below)
            return (below,)
        if kind == "choice":
            return tuple((part, below) for part in rest[0])
        part, least, most = rest
        if most == 0:
            return (below,)
        again = self.repeat(part, max(0, least - 1), None if most is None else most - 1)
        taken: Stack = (part, (again, below))
        return (taken,) if least else (taken, below)


def json_grammar(schema: Any = True) -> Grammar:
    """Of all documents that fit a schema; by default of all JSON objects.

    Raises:
        ConfigError: the schema is no schema, or uses what is not understood here; the message says where.
    """
    grammar = Grammar()
    builder = _Builder(grammar, schema)
    body = builder.any_object() if schema is True else builder.value(schema, "$")
    grammar.start = grammar.sequence(builder.space, body)
    if not grammar.leads_on(body):
        raise ConfigError("JSON schema $: no document can fit it")
    return grammar


class _Builder:
    def __init__(self, grammar: Grammar, schema: Any) -> None:
        g = self._g = grammar
        self._root = schema
        self._references: dict[str, int] = {}
        self._depth = 0
        self.space = g.repeat(g.byte((9, 10), (13, 13), (32, 32)), 0, _LONGEST_SPACE)
        tail = (0x80, 0xBF)
        plain = g.byte((0x20, 0x21), (0x23, 0x5B), (0x5D, 0x7E))
        wide = g.choice(
            g.sequence(g.byte((0xC2, 0xDF)), g.byte(tail)),
            g.sequence(g.byte((0xE0, 0xE0)), g.byte((0xA0, 0xBF)), g.byte(tail)),
            g.sequence(g.byte((0xE1, 0xEC), (0xEE, 0xEF)), g.byte(tail), g.byte(tail)),
            g.sequence(g.byte((0xED, 0xED)), g.byte((0x80, 0x9F)), g.byte(tail)),
            g.sequence(g.byte((0xF0, 0xF0)), g.byte((0x90, 0xBF)), g.byte(tail), g.byte(tail)),
            g.sequence(g.byte((0xF1, 0xF3)), g.byte(tail), g.byte(tail), g.byte(tail)),
            g.sequence(g.byte((0xF4, 0xF4)), g.byte((0x80, 0x8F)), g.byte(tail), g.byte(tail)),
        )
        hexadecimal = g.byte((48, 57), (65, 70), (97, 102))
        # No surrogates: half of a pair alone is no character.
        low = g.sequence(g.byte((48, 57), (65, 67), (69, 70), (97, 99), (101, 102)), *[hexadecimal] * 3)
        escapes = g.byte(*((ord(sign), ord(sign)) for sign in '"\\/bfnrt'))
        escape = g.sequence(g.text(b"\\"), g.choice(escapes, g.sequence(g.text(b"u"), low)))
        self._character = g.choice(plain, wide, escape)
        digit = g.byte((48, 57))
        whole = g.choice(g.text(b"0"), g.sequence(g.byte((49, 57)), g.repeat(digit, 0, _DIGITS - 1)))
        self._integer = g.sequence(g.repeat(g.text(b"-"), 0, 1), whole)
        fraction = g.sequence(g.text(b"."), g.repeat(digit, 1, _DIGITS))
        exponent = g.sequence(g.byte((69, 69), (101, 101)), g.repeat(g.byte((43, 43), (45, 45)), 0, 1), digit)
        self._number = g.sequence(self._integer, g.repeat(fraction, 0, 1), g.repeat(exponent, 0, 1))
        self._anything = g.later()
        string = self._string(0, None)
        simple = [g.text(word) for word in (b"true", b"false", b"null")]
        array = self._list(self._anything, 0, None)
        g.fill(self._anything, g.choice(string, self._number, *simple, self.any_object(), array))

    def any_object(self) -> int:
        return self._map(self._anything)

    def value(self, schema: Any, where: str) -> int:
        if schema is True or schema == {}:
            return self._anything
        if not isinstance(schema, dict):
            raise ConfigError(f"JSON schema {where}: not a schema")
        strange = sorted(set(schema) - _UNDERSTOOD)
        if strange:
            raise ConfigError(
                f"JSON schema {where}: {strange[0]!r} is not understood here",
                hint="Leave it out and check the answer yourself.",
            )
        self._depth += 1
        if self._depth > _DEEPEST:
            raise ConfigError(f"JSON schema {where}: nested too deeply")
        try:
            return self._value(schema, where)
        finally:
            self._depth -= 1

    def _value(self, schema: dict[str, Any], where: str) -> int:
        if "$ref" in schema:
            return self._reference(schema["$ref"], where)
        for word in ("anyOf", "oneOf", "allOf"):
            if word in schema:
                parts = schema[word]
                if not isinstance(parts, list) or not parts or (word == "allOf" and len(parts) > 1):
                    raise ConfigError(f"JSON schema {where}.{word}: not understood here")
                return self._g.choice(*(self.value(part, f"{where}.{word}[{i}]") for i, part in enumerate(parts)))
        if "const" in schema or "enum" in schema:
            values = [schema["const"]] if "const" in schema else schema["enum"]
            if not isinstance(values, list) or not values:
                raise ConfigError(f"JSON schema {where}.enum: not a list of values")
            return self._g.choice(*(self._g.text(json.dumps(v, ensure_ascii=False).encode()) for v in values))
        kinds = schema.get("type")
        if kinds is None:
            kinds = "object" if "properties" in schema else "array" if "items" in schema else None
        if kinds is None:
            return self._anything
        listed = kinds if isinstance(kinds, list) else [kinds]
        return self._g.choice(*(self._typed(kind, schema, where) for kind in listed))

    def _typed(self, kind: str, schema: dict[str, Any], where: str) -> int:
        g = self._g
        if kind == "object":
            return self._object(schema, where)
        if kind == "array":
            least, most = _bounds(schema, "minItems", "maxItems", where)
            return self._list(self.value(schema.get("items", True), f"{where}.items"), least, most)
        if kind == "string":
            return self._string(*_bounds(schema, "minLength", "maxLength", where))
        simple = {"integer": self._integer, "number": self._number, "null": g.text(b"null")}
        if kind == "boolean":
            return g.choice(g.text(b"true"), g.text(b"false"))
        if kind not in simple:
            raise ConfigError(f"JSON schema {where}.type: {kind!r} is no type")
        return simple[kind]

    def _reference(self, pointer: Any, where: str) -> int:
        if not isinstance(pointer, str) or not pointer.startswith("#"):
            raise ConfigError(f"JSON schema {where}.$ref: only references within the schema are understood")
        if pointer not in self._references:
            node: Any = self._root
            for word in pointer[1:].split("/")[1:]:
                key = word.replace("~1", "/").replace("~0", "~")
                if not isinstance(node, dict) or key not in node:
                    raise ConfigError(f"JSON schema {where}.$ref: there is no {pointer}")
                node = node[key]
            self._references[pointer] = number = self._g.later()
            self._g.fill(number, self.value(node, pointer))
        return self._references[pointer]

    def _string(self, least: int, most: int | None) -> int:
        quote = self._g.text(b'"')
        return self._g.sequence(quote, self._g.repeat(self._character, least, most), quote)

    def _list(self, item: int, least: int, most: int | None) -> int:
        g = self._g
        spaced = g.sequence(g.text(b","), self.space, item)
        more = g.repeat(g.sequence(self.space, spaced), max(0, least - 1), None if most is None else max(0, most - 1))
        filled = g.sequence(self.space, item, more, self.space)
        inner = [filled] if most != 0 else []
        if least == 0:
            inner.append(self.space)
        return g.sequence(g.text(b"["), g.choice(*inner), g.text(b"]"))

    def _pair(self, key: int, value: int) -> int:
        return self._g.sequence(key, self.space, self._g.text(b":"), self.space, value)

    def _map(self, value: int) -> int:
        g = self._g
        pair = self._pair(self._string(0, None), value)
        more = g.repeat(g.sequence(self.space, g.text(b","), self.space, pair))
        filled = g.sequence(self.space, pair, more, self.space)
        return g.sequence(g.text(b"{"), g.choice(filled, self.space), g.text(b"}"))

    def _object(self, schema: dict[str, Any], where: str) -> int:
        g = self._g
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        if not isinstance(properties, dict) or not isinstance(required, list):
            raise ConfigError(f"JSON schema {where}: properties or required are not what they should be")
        unnamed = [name for name in required if name not in properties]
        if unnamed:
            raise ConfigError(f"JSON schema {where}.required: {unnamed[0]!r} is not among the properties")
        if not properties:
            others = schema.get("additionalProperties", True)
            if others is False:
                return g.sequence(g.text(b"{"), self.space, g.text(b"}"))
            return self._map(self.value(others, f"{where}.additionalProperties"))
        end = g.sequence(self.space, g.text(b"}"))
        rest = {True: end, False: end}  # whether no property stands before
        for name in reversed(properties):
            key = g.text(json.dumps(name, ensure_ascii=False).encode())
            pair = self._pair(key, self.value(properties[name], f"{where}.{name}"))
            comma = g.sequence(self.space, g.text(b","), self.space)
            with_it = {True: g.sequence(self.space, pair, rest[False]), False: g.sequence(comma, pair, rest[False])}
            optional = name not in required
            rest = {
                first: g.choice(with_it[first], rest[first]) if optional else with_it[first] for first in (True, False)
            }
        return g.sequence(g.text(b"{"), rest[True])


def _bounds(schema: dict[str, Any], low: str, high: str, where: str) -> tuple[int, int | None]:
    least, most = schema.get(low, 0), schema.get(high)
    whole: Sequence[Any] = [value for value in (least, most) if value is not None]
    if not all(isinstance(value, int) and not isinstance(value, bool) and value >= 0 for value in whole):
        raise ConfigError(f"JSON schema {where}: {low} and {high} must be whole numbers")
    if most is not None and most < least:
        raise ConfigError(f"JSON schema {where}: {high} is below {low}")
    return int(least), most
