"""What must not be kept, in the disguises in which it comes."""

import sys
import time
import types
from pathlib import Path

import pytest

from edgegen.agent.telemetry.redaction import (
    RedactionError,
    Redactor,
    load_hook,
    load_redactor,
    load_rules,
    luhn,
    mod97,
)
from edgegen.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("mail john.doe+x@example.co.uk now", "mail [email] now"),
        ("john (at) example (dot) com!", "[email]!"),
        ("jo\u200bhn@exa\u00admple.com", "[email]"),
        ("john\uff20example\uff0ecom", "[email]"),
        ("IBAN DE89 3704 0044 0532 0130 00 and words", "IBAN [iban] and words"),
        ("room no12 the account DE89370400440532013000 and", "room no12 the account [iban] and"),
        ("gb82-west-1234-5698-7654-32", "[iban]"),
        ("pay with 4111 1111 1111 1111, exp 12/26", "pay with [card], exp 12/26"),
        ("4111-1111-1111-1111", "[card]"),
        ("3782 822463 10005", "[card]"),
        ("\u0664\u0661\u0661\u0661" + "\u0661" * 12, "[card]"),
        ("from 10.0.0.1 to 2001:db8::ff00:42:8329.", "from [ip] to [ip]."),
        ("::ffff:10.0.0.1 and fe80::1%eth0", "[ip] and [ip]"),
        ("00:1A:2b:3c:4d:5e", "[mac]"),
        ("call +49 (0)30 901820-0 now", "call [phone] now"),
        ("555-123-4567", "[phone]"),
        ("customer 12345678", "customer [number]"),
        ("key sk-proj-abcdEFGH1234567890abcd.", "key [key]."),
        ("AKIAIOSFODNN7EXAMPLE", "[key]"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\nnever ends", "[key]"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc-DEF_123", "[key]"),
        ("https://user:hunter2@host/x", "https://[key]@host/x"),
        ('"password": "hunter22"', '"[key]"'),
        ("Authorization: Bearer abc.def-123456", "Authorization: Bearer [key]"),
        ("aB3dE6gH9jK2mN5pQ8sT1vW4", "[key]"),
    ],
)
def test_secrets_go(text: str, kept: str) -> None:
    assert Redactor().blot(text) == (kept, kept.count("["))


@pytest.mark.parametrize(
    "text",
    [
        "The kettle boils at 100 degrees.",
        "In 1999 and 2024, at 12:30:45, 1,000,000,000 people and 3.14159",
        "version 1.2.3 of std::vector, see a/b.c and x@y",
        "meet at noon",
        "Donaudampfschifffahrtsgesellschaft_internationalization",
        "今日は良い天気ですね",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert Redactor().blot(text) == (text, 0)


@pytest.mark.parametrize("text", ["4111 1111 1111 1112", "4111111111111112", "DE89 3704 0044 0532 0130 01", "1" * 40])
def test_numbers_whose_check_fails_go_all_the_same(text: str) -> None:
    blotted, places = Redactor().blot(text)
    assert places and not any(run in blotted for run in ("4111", "3704", "1111"))


def test_check_digits() -> None:
    assert luhn("79927398713") and not luhn("79927398710")
    assert mod97("GB82WEST12345698765432") and not mod97("GB82WEST12345698765431") and not mod97("?")


def test_rules_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(
        "[[rule]]\nname = 'employee'\npattern = 'EMP-\\d{5}'\n[[rule]]\nname = 'meter'\n"
        "pattern = 'M[0-9]{6}'\nvalidator = 'luhn'\n"
    )
    assert load_redactor(str(path), "").blot("EMP-12345 M123455 M123456") == ("[employee] [meter] M123456", 2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("[[rule]]\nname = 'a'\npattern = '('", "rule 'a'"),
        ("[[rule]]\nname = 'A b'\npattern = 'x'", "a-z"),
        ("[[rule]]\nname = 'a'\npattern = 'x*'", "everywhere"),
        ("[[rules]]", "Did you mean 'rule'|unknown key"),
        ("rule = 1", "array"),
    ],
)
def test_wrong_rules_are_one_line(tmp_path: Path, words: str, said: str) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(words)
    with pytest.raises(ConfigError, match=said):
        load_rules(str(path))


def test_the_users_function_sees_the_text_first_and_the_rules_last(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("my_privacy")
    module.clean = lambda text: text.replace("Anna", "[name]") + " a@b.example"  # type: ignore[attr-defined]
    module.broken = lambda text: text.secret  # type: ignore[attr-defined]
    module.none = lambda _: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_privacy", module)
    assert Redactor(hook=load_hook("my_privacy:clean")).blot("Anna") == ("[name] [email]", 1)
    for name in ("broken", "none"):
        with pytest.raises(RedactionError) as caught:
            Redactor(hook=load_hook(f"my_privacy:{name}")).blot("Anna")
        assert "Anna" not in str(caught.value)
    for name in ("my_privacy:nothing", "no_such_module:x"):
        with pytest.raises(ConfigError, match=r"telemetry\.hook"):
            load_hook(name)


@pytest.mark.parametrize(
    "piece", ["1 ", "1-", "a@", "a:", "1.", "a.b", "a at b dot ", "eyJaaaaaaaa.", "password=", "DE89 ", "ab12-", "( "]
)
def test_hostile_texts_take_no_long_time(piece: str) -> None:
    began = time.process_time()
    Redactor().blot((piece * 12_000)[:12_000])
    assert time.process_time() - began < 20
