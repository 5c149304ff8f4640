"""Keys by name, so that a file can change them: `[keys]` of `monitor-keys.toml` in edgegen's folder of settings.

    [keys]
    "fleet.outputs" = "O"
    "app.quit" = "ctrl+q,q"

A binding is declared where its action is, with `key`; names are `<where>.<what>`, listed by `?`. Small letters look,
and those that change the fleet are capitals and ask first.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path

from textual.binding import Binding
from textual.keys import KEY_ALIASES, Keys

from edgegen.catalog.locate import user_folder
from edgegen.common.codec import did_you_mean, load_toml
from edgegen.errors import ConfigError
from edgegen.records.base import Record

KEYS_FILE = "monitor-keys.toml"
_APART = {"run", "stop"}
"""Places of the compression's screens, where the monitor's keys do not hold."""
_KNOWN: dict[str, str] = {}
"""Name of each binding that was declared → its keys."""


class KeyFile(Record, frozen=True):
    """What the file holds."""

    keys: dict[str, str] = {}


def key(name: str, keys: str, action: str, description: str, *, show: str = "", priority: bool = False) -> Binding:
    """A binding that a file can change.

    Args:
        name: `<where>.<what>`, unique.
        keys: comma-separated; a capital letter is itself, not `shift+…`.
        show: the word for it in the bottom line; empty: it does not stand there.
    """
    _KNOWN[name] = keys
    return Binding(keys, action, description, show=bool(show), tooltip=show, priority=priority, id=name)


def known_keys() -> dict[str, str]:
    """Every binding's name and its keys as shipped."""
    return dict(_KNOWN)


def load_keymap(path: Path | None = None) -> dict[str, str]:
    """What the user's file changes; nothing where there is none.

    Raises:
        ConfigError: not TOML, an unknown name or key, or one key twice in one place.
    """
    import edgegen.monitor.compression
    import edgegen.monitor.monitor_app  # noqa: F401 - both declare what the file may name

    explicit = path is not None
    path = path or user_folder() / KEYS_FILE
    if not explicit and not path.is_file():
        return {}
    changed = load_toml(path, KeyFile, may_be_empty=True).keys
    for name, keys in changed.items():
        if name not in _KNOWN:
            raise ConfigError(f"{path}: there is no key named {name[:40]!r}", hint=did_you_mean(name, sorted(_KNOWN)))
        for one in keys.split(","):
            if not _is_key(one.strip()):
                raise ConfigError(f"{path}: {name}: {one[:20]!r} is no key", hint="Like o, O, f5, ctrl+o or pagedown.")
    _refuse_twice(path, {**_KNOWN, **changed}, changed)
    return changed


def shown_key(keys: str) -> str:
    """Keys as a person reads them: `ctrl+p` is `^p`."""
    names = {
        "slash": "/", "colon": ":", "question_mark": "?", "space": "space", "escape": "esc", "comma": ",",
        "full_stop": ".", "left_square_bracket": "[", "right_square_bracket": "]", "plus": "+", "minus": "-",
        "ctrl+space": "^space", "ctrl+@": "^space", "ctrl+backslash": "^\\", "less_than_sign": "<",
        "greater_than_sign": ">", "pagedown": "pgdn", "pageup": "pgup", "equals_sign": "=",
    }  # fmt: skip
    return names.get(keys) or (f"^{keys[5:]}" if keys.startswith("ctrl+") else keys)


def _is_key(name: str) -> bool:
    if len(name) == 1:
        return name.isprintable() and name != " "
    bare = name
    for modifier in ("ctrl+", "shift+", "alt+", "super+"):
        bare = bare.removeprefix(modifier)
    if len(bare) == 1:
        return bare.isprintable()
    if bare in {one.value for one in Keys} or bare in KEY_ALIASES:
        return True
    try:
        unicodedata.lookup(bare.replace("_", " ").upper())  # Textual's names: question_mark
    except KeyError:
        return bare in ("minus", "plus", "slash", "backslash", "at")
    return True


def _refuse_twice(path: Path, keys: dict[str, str], changed: dict[str, str]) -> None:
    """A changed key that another binding of the same screen, or one that holds everywhere, has too."""
    for name in changed:
        own = {one.strip() for one in keys[name].split(",")}
        where = name.partition(".")[0]
        for other, theirs in keys.items():
            there = other.partition(".")[0]
            everywhere = "app" in (there, where) and not _APART & {there, where}
            if other == name or (there != where and not everywhere):
                continue
            both = own & {one.strip() for one in theirs.split(",")}
            if both:
                raise ConfigError(f"{path}: {sorted(both)[0]!r} would be both {name} and {other}")
