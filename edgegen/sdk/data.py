"""Data sets: `edgegen.build_data(["raw.jsonl"], out="data")`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgegen.common.codec import load_toml
from edgegen.errors import ConfigError
from edgegen.prepare.build import Built, Told, build_dataset
from edgegen.prepare.built import open_dataset, read_rows
from edgegen.records.dataset import Row
from edgegen.records.recipe import Recipe, Source


def build_data(
    sources: Sequence[str] = (),
    *,
    out: str | Path = "data",
    recipe: Recipe | str | None = None,
    told: Told | None = None,
) -> Built:
    """Build a data set: clean, without duplicates and personal data, labelled, split, with a card.

    Args:
        sources: files, folders or hub ids, besides those that the recipe names.
        recipe: everything else, as a record or a TOML file.

    Raises:
        ConfigError, NetworkError, DeviceError, UnsupportedError: see `edgegen.errors`.
    """
    found = load_recipe(recipe)
    named = (*found.source, *(Source(path=source) for source in sources))
    return build_dataset(msgspec.structs.replace(found, source=named), Path(out).expanduser(), told=told)


def load_recipe(recipe: Recipe | str | None) -> Recipe:
    """A recipe; a file's relative paths are its folder's.

    Raises:
        ConfigError: no such file, nothing in it, or an unknown key.
    """
    if recipe is None:
        return Recipe()
    if isinstance(recipe, Recipe):
        return recipe
    path = Path(recipe).expanduser()
    found = load_toml(path, Recipe)

    def near(name: str) -> str:
        return str(path.parent / name) if name and (path.parent / name).exists() else name

    return msgspec.structs.replace(
        found,
        source=tuple(msgspec.structs.replace(s, path=near(s.path)) for s in found.source),
        redact=msgspec.structs.replace(found.redact, rules=near(found.redact.rules)),
        bias=msgspec.structs.replace(found.bias, groups=near(found.bias.groups)),
        decontaminate=msgspec.structs.replace(
            found.decontaminate, against=tuple(near(name) for name in found.decontaminate.against)
        ),
    )


def find_row(folder: str | Path, row: str) -> Row:
    """Where a row comes from: by its id, the beginning of it, or a piece of its text.

    Raises:
        ConfigError: none or several fit.
    """
    found: dict[str, Row] = {}
    for split in open_dataset(folder).splits:
        for entry in read_rows(folder, split.name):
            says = entry.text or "\n".join(content for _, content in entry.messages)
            if entry.id.startswith(row) or row.lower() in says.lower():
                found[entry.id] = entry
    if len(found) != 1:
        raise ConfigError(
            f"{folder}: {len(found)} rows fit {row!r}",
            hint="Give a longer piece of the text, or the row's id."
            if found
            else "Ids are 16 digits; texts are compared without case.",
        )
    return next(iter(found.values()))
