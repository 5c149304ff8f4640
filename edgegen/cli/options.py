"""Options that several commands take, declared once."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from edgegen.common.units import parse_bytes, parse_positive
from edgegen.errors import ConfigError

Model = Annotated[str, typer.Argument(help="A checkpoint's folder, or a hub id like org/name.", show_default=False)]
ProfileName = Annotated[
    str,
    typer.Option("--profile", "-p", help="Device: a name from `edgegen profiles`, or a TOML file.", show_default=False),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        "-d",
        help="Your data: .jsonl, .csv, .parquet, .txt, a folder or a hub id. A quarter is held out.",
    ),
]
Out = Annotated[str, typer.Option("--out", "-o", help="Folder for the result.")]
Target = Annotated[
    str, typer.Option("--target", "-t", help="Runtime: gguf, onnx or litert; several like gguf,onnx are compared.")
]
MaxBytes = Annotated[
    str | None, typer.Option("--max-bytes", help="Largest file, like 60MB; sets the profile's limit on KL aside.")
]
MaxRss = Annotated[str | None, typer.Option("--max-rss", help="Largest resident memory, like 400MB; likewise.")]
MinSpeed = Annotated[str | None, typer.Option("--min-tok-s", help="Slowest decoding, tokens per second.")]
MaxTtft = Annotated[str | None, typer.Option("--max-ttft", help="Longest time to the first token, milliseconds.")]
MaxKl = Annotated[str | None, typer.Option("--max-kl", help="Largest mean KL to the original, nats per token.")]
MinCosine = Annotated[
    str | None, typer.Option("--min-cosine", help="Of an encoder: least mean cosine similarity to the original.")
]
Prefer = Annotated[
    str,
    typer.Option(
        "--prefer",
        help="Within the budgets: quality, size, speed; auto: quality if a size is given, else size.",
    ),
]
Grids = Annotated[str | None, typer.Option("--grids", help="Allow only these number grids, like q8_0,q4_k.")]
Vocab = Annotated[
    str, typer.Option("--vocab", help="auto (drop tokens that your data does not use), keep, or a number.")
]
KeepTokens = Annotated[
    str | None,
    typer.Option(
        "--keep-tokens",
        help="File of tokens that stay in a trimmed vocabulary, as edgegen learn --vocabulary writes it.",
    ),
]
KvType = Annotated[
    str | None,
    typer.Option(
        "--kv-type", help="What the runtime keeps keys and values in: f16, or q8_0 in half of its memory (gguf)."
    ),
]
Memory = Annotated[
    str | None,
    typer.Option("--memory", help="What the model may take here, like 4GB; a larger one is measured block by block."),
]
Budget = Annotated[
    str | None,
    typer.Option(
        "--budget",
        help="Time for a better artifact, like 10m, 1h or overnight, for each target: changing the structure too "
        "(depth, width, rank …) and healing it, exchanging grids, tuning the rounded weights.",
    ),
]
Techniques = Annotated[
    str | None,
    typer.Option(
        "--techniques",
        help="Spend --budget on these only, like depth,width; local_search exchanges grids, refinement tunes weights.",
    ),
]
Explain = Annotated[bool, typer.Option("--explain", help="Say of each technique why it was taken or not.")]
Gates = Annotated[
    str | None,
    typer.Option("--gates", help="A TOML file of limits that the artifact, evaluated against the original, must keep."),
]
Rounding = Annotated[
    str,
    typer.Option(
        "--rounding",
        help="compensated (what rounding one weight does is made good in others), plain, or auto: compensated for "
        "models that continue text.",
    ),
]
LiteRtLm = Annotated[
    bool, typer.Option("--litertlm", help="Also pack the LiteRT artifact as model.litertlm, for LiteRT-LM.")
]
CommonGrid = Annotated[
    bool,
    typer.Option("--common-grid", help="Round once: all targets hold the same codes and scales, and all keep budgets."),
]
Tui = Annotated[bool, typer.Option("--tui", help="Show the run on screens of its own: stages, plan, trade-off, log.")]
Runtime = Annotated[str, typer.Option("--runtime", help="One that runs the target; else the first installed one.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]


def targets_of(target: str) -> tuple[str, ...]:
    """The names in `--target`.

    Raises:
        ConfigError: none.
    """
    names = tuple(dict.fromkeys(name.strip().lower() for name in target.split(",") if name.strip()))
    if not names:
        raise ConfigError("--target names none", hint="Write it like gguf, or gguf,onnx,litert to compare.")
    return names


def arguments(
    *,
    profile: str,
    data: str | None,
    out: str,
    max_bytes: str | None,
    max_rss: str | None,
    min_tok_s: str | None,
    max_ttft: str | None,
    max_kl: str | None,
    min_cosine: str | None,
    prefer: str,
    grids: str | None,
    kv_type: str | None,
    vocab: str,
    keep_tokens: str | None = None,
    memory: str | None = None,
    budget: str | None = None,
    techniques: str | None = None,
    rounding: str = "auto",
) -> dict[str, Any]:
    """The command line's words as the SDK's arguments.

    Raises:
        ConfigError: a size or number that is none.
    """
    return {
        "profile": profile,
        "data": data,
        "out": out,
        "max_bytes": parse_bytes(max_bytes, what="--max-bytes") if max_bytes is not None else None,
        "max_rss_bytes": parse_bytes(max_rss, what="--max-rss") if max_rss is not None else None,
        "min_tokens_per_s": parse_positive(min_tok_s, what="--min-tok-s") if min_tok_s is not None else None,
        "max_ttft_ms": parse_positive(max_ttft, what="--max-ttft") if max_ttft is not None else None,
        "max_kl": parse_positive(max_kl, what="--max-kl") if max_kl is not None else None,
        "min_cosine": parse_positive(min_cosine, what="--min-cosine") if min_cosine is not None else None,
        "prefer": prefer,
        "grids": tuple(grid.strip().lower() for grid in grids.split(",") if grid.strip())
        if grids is not None
        else None,
        "kv_type": kv_type.strip().lower() if kv_type is not None else None,
        "vocab": vocab,
        "keep_tokens": keep_tokens,
        "memory_bytes": parse_bytes(memory, what="--memory") if memory is not None else None,
        "budget": budget,
        "techniques": _names(techniques),
        "rounding": rounding,
    }


def _names(listed: str | None) -> tuple[str, ...] | None:
    """Names between commas, each once."""
    if listed is None:
        return None
    return tuple(dict.fromkeys(name.strip().lower() for name in listed.split(",") if name.strip()))
