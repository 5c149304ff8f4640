"""What all records share: immutable, strict about keys.

msgspec structs rather than standard dataclasses: the same declaration decodes, type-checks, refuses unknown keys
and gives the JSON Schema, and the library is one small wheel that every device can hold.
"""

from __future__ import annotations

import msgspec


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every record."""
