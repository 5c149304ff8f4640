"""Where the tensors of a model file begin: just enough of each format to find their offsets.

No format's own library is needed, so that packing works on the base install and costs a read of the file's header. A
file that cannot be walked is not refused here (the runtime judges it): it is cut into even parts, and a note says so.
"""

from __future__ import annotations

from typing import NamedTuple


class Span(NamedTuple):
    """A tensor's bytes in a file."""

    offset: int
    bytes: int
    name: str


class UnreadableError(ValueError):
    """The file is not what its name says, or uses something that is not known here."""
