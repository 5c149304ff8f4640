"""What a user wants of a result, beside the device: budgets, preference, grids, vocabulary."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal, TypedDict

import msgspec

from edgegen.catalog import load_profile
from edgegen.common.codec import decode_json, read_bytes
from edgegen.common.units import parse_seconds
from edgegen.errors import ConfigError, UnsupportedError
from edgegen.evaluate.gates import load_gates
from edgegen.records.evaluation import Gates
from edgegen.records.learning import Restore
from edgegen.records.model import Task
from edgegen.records.profile import Budgets, Profile

Rounding = Literal["compensated", "plain"]


class Wishes(TypedDict, total=False):
    """Keyword arguments of `compress`, `plan` and `bake_off`; what is left out is the profile's own."""

    max_bytes: int | None
    """Largest size of the model's files."""
    max_rss_bytes: int | None
    """Largest resident memory."""
    min_tokens_per_s: float | None
    """Slowest decoding."""
    max_ttft_ms: float | None
    """Longest time to the first token."""
    max_kl: float | None
    """Largest mean KL to the original, nats per token; of models that continue text."""
    min_cosine: float | None
    """Least mean cosine similarity to the original's vectors; of encoders."""
    prefer: str
    """What to optimise within the budgets: `quality`, `size`, `speed`; `auto` (the default) is quality where a size
    budget is given and size otherwise."""
    grids: tuple[str, ...] | None
    """Allowed number grids; None: what the target plans with."""
    kv_type: str | None
    """What the runtime keeps keys and values in, such as q8_0; None: as the profile says, or the target's first."""
    vocab: str
    """`auto` (the default), `keep`, or a number of tokens."""
    keep_tokens: str | Path | tuple[str, ...] | None
    """Tokens, or text whose tokens, stay in a trimmed vocabulary: a tuple, or a file that `edgegen learn --vocabulary`
    wrote, or one with a JSON list, or with a line for each."""
    memory_bytes: int | None
    """What the model's weights may take on this machine; a larger model is measured block by block. None: what is
    free."""
    budget: str | float | None
    """Time for looking at other structures (pruned, narrowed, factorised …) and healing them, for exchanging grids by
    what they really do, and for tuning the rounded weights: seconds, or a text like `10m`, `1h` or `overnight`. None:
    only the vocabulary and the grids are chosen."""
    techniques: tuple[str, ...] | None
    """Those that may be used within `budget`: structures' by name, `local_search` (exchanging grids), `refinement`
    (tuning rounded weights); None: all of them."""
    rounding: str
    """`compensated`: what rounding a weight does to a layer's outputs is made good in its other weights, as far as the
    grid allows; `plain`: each weight goes to its nearest level; `auto` (the default): compensated for models that
    continue text."""
    litertlm: bool
    """Whether the LiteRT artifact is also packed as one `.litertlm` file, for LiteRT-LM."""
    common_grid: bool
    """Whether weights are rounded once for all targets of `bake_off`, which then hold the same codes and scales. Each
    budget has to be kept by every target; what is optimised within them is the first one's."""
    gates: Gates | str | None
    """Limits that the artifact, evaluated on the data's held-out rows against the original, has to keep, or a TOML file
    of them."""


class Times(msgspec.Struct, frozen=True):
    """What a time budget is spent on, in seconds; 0: that is left out."""

    structures: float = 0.0
    """Looking at other structures."""
    local_search: float = 0.0
    """Exchanging grids."""
    refinement: float = 0.0
    """Tuning rounded weights."""

    @property
    def any(self) -> bool:
        """Whether there is a budget."""
        return self.structures + self.local_search + self.refinement > 0


NO_TIME = Times()


class Wanted(msgspec.Struct, frozen=True):
    """A device with the budgets that count."""

    profile: Profile
    budgets: Budgets
    prefer: str
    grids: tuple[str, ...] | None
    vocab: str
    litertlm: bool = False
    keep: tuple[str, ...] = ()
    """Tokens that stay in a trimmed vocabulary, sorted."""
    memory_bytes: int | None = None
    """Of this machine, for the model's weights; None: what is free."""
    times: Times = NO_TIME
    techniques: tuple[str, ...] | None = None
    """Those of structures that may be used; None: all of them."""
    gates: Gates | None = None
    """None: the artifact is not evaluated."""
    common_grid: bool = False
    """Whether all targets hold the same rounded weights."""
    rounding: str = "auto"
    """One of `Rounding`, or auto until the model is known."""
    given: frozenset[str] = frozenset()
    """Budgets that are not the profile's own."""

    @property
    def is_sized(self) -> bool:
        """Whether a size was given and quality is what it buys."""
        return self.prefer == "quality" and bool(self.given & {"max_bytes", "max_rss_bytes"})


LOCAL_SEARCH, REFINEMENT = "local_search", "refinement"
"""What a time budget is good for beside structures, as `--techniques` names it."""
OVERNIGHT_S = 8 * 3600.0
MIN_COSINE = 0.99
"""Where neither the profile nor the user says how close an encoder has to stay."""
_SHARES = {"structures": 0.5, "local_search": 0.1, "refinement": 0.4}
"""Of a time budget."""
_BUDGETS = ("max_bytes", "max_rss_bytes", "min_tokens_per_s", "max_ttft_ms", "max_kl", "min_cosine")


def resolve(profile: str | Profile, targets: tuple[str, ...], wishes: Wishes) -> Wanted:
    """Load the profile and lay the given budgets over its own.

    Raises:
        TypeError: a wish that there is not.
        ConfigError: unknown profile, a budget that is not positive, an unknown preference, size without a limit on KL,
            a `.litertlm` file without the target that it is made of, or a common grid with what it cannot be had with.
        UnsupportedError: the device does not run a target, or this version cannot write it.
    """
    from edgegen.export.registry import exporter_for

    unknown = set(wishes) - set(Wishes.__annotations__)
    if unknown:
        raise TypeError(f"unknown argument {sorted(unknown)[0]!r}; known: {', '.join(Wishes.__annotations__)}")
    found = load_profile(profile) if isinstance(profile, str) else profile
    for target in targets:
        exporter_for(target)
        if target not in found.targets:
            raise UnsupportedError(
                f"profile {found.name} does not run target {target}",
                hint="It runs: " + ", ".join(found.targets) + ".",
            )
    if wishes.get("litertlm") and "litert" not in targets:
        raise ConfigError("--litertlm packs LiteRT artifacts", hint="Add --target litert.")
    if wishes.get("common_grid"):
        _require_common(targets, wishes)
    given = {name: wishes[name] for name in _BUDGETS if wishes.get(name) is not None}  # type: ignore[literal-required]
    for name, value in given.items():
        if not value > 0:
            raise ConfigError(
                f"budget {name} is {value}; it must be above 0", hint="Leave it out for the profile's own."
            )
    prefer = wishes.get("prefer", "auto")
    if prefer not in ("auto", "quality", "size", "speed"):
        raise ConfigError(f"prefer: {prefer!r} is not one of auto, quality, size, speed")
    sized = "max_bytes" in given or "max_rss_bytes" in given
    if prefer == "auto":
        prefer = "quality" if sized else "size"
    rounding = wishes.get("rounding", "auto")
    if rounding not in ("auto", "compensated", "plain"):
        raise ConfigError(f"rounding: {rounding!r} is not one of auto, compensated, plain")
    budgets = msgspec.structs.replace(found.budgets, **given)
    if prefer == "quality" and sized and "max_kl" not in given:
        # The user set the size: quality is what it buys, not a second limit that they did not ask for.
        budgets = msgspec.structs.replace(budgets, max_kl=None)
    if prefer != "quality" and budgets.max_kl is None and budgets.min_cosine is None:
        raise _no_limit(prefer)
    gates = wishes.get("gates")
    if kv_type := wishes.get("kv_type"):
        workload = msgspec.structs.replace(found.workload, kv_type=kv_type)
        found = msgspec.structs.replace(found, workload=workload)
    return Wanted(
        profile=found,
        budgets=budgets,
        prefer=prefer,
        grids=wishes.get("grids"),
        vocab=wishes.get("vocab", "auto"),
        litertlm=wishes.get("litertlm", False),
        keep=read_kept_tokens(wishes.get("keep_tokens")),
        memory_bytes=wishes.get("memory_bytes"),
        times=times_of(wishes.get("budget"), wishes.get("techniques"), prefer),
        techniques=_structural(wishes.get("techniques")),
        gates=load_gates(gates) if isinstance(gates, str) else gates,
        rounding=rounding,
        given=frozenset(given),
        common_grid=wishes.get("common_grid", False),
    )


def _require_common(targets: tuple[str, ...], wishes: Wishes) -> None:
    """
    Raises:
        ConfigError: something that a common grid cannot be had with.
    """
    if len(targets) < 2:
        raise ConfigError(
            "--common-grid gives several targets the same weights, and one was named",
            hint="Name them, like --target gguf,onnx,litert.",
        )
    if wishes.get("grids") is not None:
        raise ConfigError("--common-grid takes the grids that all targets hold", hint="Leave out --grids.")
    if wishes.get("budget") is not None:
        raise ConfigError(
            "--common-grid gives all targets the same weights, and --budget is time for those of one",
            hint="Leave one of them out.",
        )


def times_of(budget: str | float | None, techniques: tuple[str, ...] | None, prefer: str) -> Times:
    """How a time budget is divided among what may be used.

    Raises:
        ConfigError: no time, techniques without time for them, or unknown ones.
    """
    if budget is None:
        if techniques is not None:
            raise ConfigError("--techniques needs time to try them", hint="Add --budget, for example 10m.")
        return NO_TIME
    if techniques is not None:
        _require_techniques(techniques)
    if isinstance(budget, str):
        seconds = OVERNIGHT_S if budget.strip() == "overnight" else parse_seconds(budget, what="--budget")
    elif 0 < budget < math.inf:
        seconds = float(budget)
    else:
        raise ConfigError(f"budget is {budget}; it must be above 0", hint="Leave it out to keep the structure.")
    if techniques is None:
        used = [name for name in _SHARES if name != LOCAL_SEARCH or prefer == "quality"]
    else:
        used = [name for name in (LOCAL_SEARCH, REFINEMENT) if name in techniques]
        used += ["structures"] if _structural(techniques) else []
    if prefer != "quality" and LOCAL_SEARCH in used:
        raise ConfigError(
            f"local_search looks for quality, and {prefer} is preferred", hint="Give a size, or add --prefer quality."
        )
    whole = sum(_SHARES[name] for name in used)
    return Times(**{name: seconds * _SHARES[name] / whole for name in used})


def _require_techniques(names: tuple[str, ...]) -> None:
    """
    Raises:
        ConfigError: none, or one that there is not.
    """
    from edgegen.techniques.registry import techniques

    known = (*(t.NAME for t in techniques()), LOCAL_SEARCH, REFINEMENT)
    hint = "Known: " + ", ".join(known) + "."
    if not names:
        raise ConfigError("--techniques names none", hint=hint)
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown technique {name!r}", hint=hint)


def _structural(techniques: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Those that change the structure."""
    return None if techniques is None else tuple(t for t in techniques if t not in (LOCAL_SEARCH, REFINEMENT))


def read_kept_tokens(keep: str | Path | tuple[str, ...] | None) -> tuple[str, ...]:
    """Tokens, sorted, each once.

    Raises:
        ConfigError: a file that cannot be read, or with nothing in it.
    """
    if keep is None:
        return ()
    if isinstance(keep, tuple):
        return tuple(sorted(set(keep)))
    if not str(keep):
        raise ConfigError("--keep-tokens names no file", hint="Name one with a token on each line.")
    data = read_bytes(Path(keep))
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{keep}: not UTF-8 text", hint="Name a file that edgegen learn --vocabulary wrote."
        ) from error
    found: tuple[str, ...]
    if text.lstrip().startswith("{"):
        found = decode_json(data, Restore, where=str(keep)).tokens
    elif text.lstrip().startswith("["):
        found = decode_json(data, tuple[str, ...], where=str(keep))
    else:
        found = tuple(line for line in text.splitlines() if line)
    if not found:
        raise ConfigError(f"{keep}: names no token", hint="Leave --keep-tokens out.")
    return tuple(sorted(set(found)))


def fit_task(wanted: Wanted, task: Task) -> Wanted:
    """Keep the limit on quality that a model of this kind is judged by, and choose how it is rounded.

    Raises:
        UnsupportedError: compensated rounding was asked for and this kind of model has none.
        ConfigError: the other kind's limit was given, there is none where size or speed is preferred, or an encoder is
            to be packed for an engine that writes text.
    """
    budgets, given = wanted.budgets, wanted.given
    if wanted.rounding == "auto":
        wanted = msgspec.structs.replace(wanted, rounding="compensated" if task == "causal" else "plain")
    elif wanted.rounding == "compensated" and task == "encoder":
        raise UnsupportedError("an encoder's weights are rounded one by one", hint="Leave out --rounding.")
    if task == "causal":
        if "min_cosine" in given:
            raise ConfigError("--min-cosine is for encoders; this model continues text", hint="Use --max-kl.")
        if wanted.prefer != "quality" and budgets.max_kl is None:
            raise _no_limit(wanted.prefer)
        return msgspec.structs.replace(wanted, budgets=msgspec.structs.replace(budgets, min_cosine=None))
    if "max_kl" in given:
        raise ConfigError("--max-kl is for models that continue text; this is an encoder", hint="Use --min-cosine.")
    if wanted.times.any:
        raise ConfigError(
            "--budget is for models that continue text; this is an encoder, whose structure stays", hint="Leave it out."
        )
    if wanted.gates is not None:
        raise ConfigError(
            "--gates judge what a model writes; this is an encoder", hint="Leave it out: --min-cosine is its limit."
        )
    if wanted.litertlm:
        raise ConfigError("--litertlm is for models that continue text; this is an encoder", hint="Leave it out.")
    least = MIN_COSINE if budgets.min_cosine is None else budgets.min_cosine
    if not least < 1:
        raise ConfigError(f"--min-cosine is {least:g}; it must be below 1", hint="Write it like 0.99.")
    limit = None if wanted.is_sized and "min_cosine" not in given else least
    return msgspec.structs.replace(wanted, budgets=msgspec.structs.replace(budgets, max_kl=None, min_cosine=limit))


def _no_limit(prefer: str) -> ConfigError:
    return ConfigError(f"preferring {prefer} needs a limit on quality", hint="Add --max-kl, for example 0.05.")
