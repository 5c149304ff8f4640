"""What `edgegen run` shows for an encoder: a text's vector, or how close other texts are."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from edgegen.cli.render import write_json
from edgegen.records.embedding import Embedding

_SHOWN = 8
"""Numbers of a vector that are printed; --json has all."""


def embed(
    folder: Path, text: str, others: Sequence[str], *, runtime: str, threads: int | None, json: bool, quiet: bool
) -> None:
    """Encode a text, print what came of it, and its speed on stderr."""
    from edgegen.sdk.embed import Embedder

    with Embedder(folder, runtime=runtime, threads=threads) as embedder:
        found = embedder.embed(text, others)
    if json:
        write_json(found)
    else:
        sys.stdout.write("\n".join(lines_of(found)) + "\n")
    if not quiet:
        sys.stderr.write(f"[{describe(found)}]\n")


def lines_of(found: Embedding) -> list[str]:
    """The first numbers and the length of the vector, then the other texts, the closest first."""
    from edgegen.receipt.shown import show, visible

    numbers = " ".join(f"{value:+.4f}" for value in found.vector[:_SHOWN])
    more = " …" if len(found.vector) > _SHOWN else ""
    lines = [f"{numbers}{more}  ({len(found.vector)} numbers, length {found.norm:.4f})"]
    return lines + [f"{show(other.cosine, 'cosine')}  {visible(other.text)}" for other in found.similar]


def describe(found: Embedding) -> str:
    """Its length and speed, and whether something was cut off."""
    from edgegen.common.units import format_seconds

    words = f"{found.tokens} tokens in {format_seconds(found.ms / 1000)} on {found.runtime}"
    return words + (", the rest of the text was cut off" if found.was_cut else "")
