"""How much of a release a device with another one has already."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from edgegen.records.bundle import Manifest


class Transfer(NamedTuple):
    """Bytes of a release."""

    fetched: int
    """That have to be transferred."""
    reused: int
    """That are on the device."""


def transfer(manifest: Manifest, installed: Iterable[Manifest]) -> Transfer:
    """What a device with these releases has to fetch, segment by segment. The manifest itself is not counted.

    A segment counts as there if a file of an installed release has one with its digest, wherever in whichever file.
    """
    have = set()
    for other in installed:
        for file in other.files:
            have.add(file.digest)
            have.update(segment.digest for segment in file.segments)
    fetched = reused = 0
    for file in manifest.files:
        if file.digest in have:
            reused += file.bytes
            continue
        for digest, size in [(s.digest, s.bytes) for s in file.segments] or [(file.digest, file.bytes)]:
            if digest in have:
                reused += size
            else:
                fetched += size
                have.add(digest)  # twice in one release is fetched once
    return Transfer(fetched, reused)
