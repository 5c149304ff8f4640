"""JSON Schema of the catalogue's files, generated from the records so that the two cannot drift apart."""

from __future__ import annotations

from typing import Any

import msgspec

from edgegen.errors import ConfigError
from edgegen.records.profile import Profile
from edgegen.records.target import Target

KINDS: dict[str, type[Profile] | type[Target]] = {"profile": Profile, "target": Target}


def schema_of(kind: str) -> dict[str, Any]:
    """JSON Schema (2020-12) of `profile` or `target`.

    Raises:
        ConfigError: another kind.
    """
    if kind not in KINDS:
        raise ConfigError(f"there is no schema for {kind!r}", hint="Known: " + ", ".join(KINDS) + ".")
    schema = msgspec.json.schema(KINDS[kind])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"edgegen {kind}", **schema}
