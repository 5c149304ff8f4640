"""A smaller model of a teacher's kind that starts from the teacher's own weights.

Depth: layers are kept at even distances, the first and the last among them. Width: hidden dimensions, attention heads
and feed-forward channels are kept by how strongly they are active on some text (Minitron, Muralidharan et al. 2024):
mean absolute value after the norms, of what goes into the output projection, and of what goes into the down projection.
Heads go by whole groups of a key/value head, so that queries keep theirs.

H hidden size, F feed-forward width, D size of a head.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import msgspec
import torch
from huggingface_hub.errors import StrictDataclassError

from edgegen.errors import ConfigError, UnsupportedError
from edgegen.modeling.load import model_class, quiet_transformers
from edgegen.training.batches import Item, collate

_WIDTH_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
_STEP = 32
"""Widths are multiples of this, so that rows fit the grids' blocks."""
_ASKED_TOKENS = 4096


class Shape(msgspec.Struct, frozen=True):
    """Sizes of a decoder."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int

    def __str__(self) -> str:
        return f"layers={self.layers},hidden={self.hidden},ffn={self.ffn},heads={self.heads},kv={self.kv_heads}"


def shape_of(config: Any) -> Shape:
    """Sizes in a configuration."""
    heads = config.num_attention_heads
    return Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        ffn=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
    )


def choose_shape(config: Any, fraction: float) -> Shape:
    """The shape with at most this fraction of the teacher's parameters that keeps the most of its depth.

    Among shapes within a twentieth of the largest that fits, the deepest one is taken: at equal size, taking width
    costs less than taking layers.

    Raises:
        ConfigError: nothing is that small.
    """
    whole = shape_of(config)
    limit = fraction * count_parameters(config, whole)
    found = []
    for shape in _shapes(whole, config.model_type in _WIDTH_FAMILIES):
        if _refused(config, shape):
            continue
        # Every layer is as large as the others, so two counts give all depths.
        one, two = (count_parameters(config, msgspec.structs.replace(shape, layers=n)) for n in (1, 2))
        for layers in range(1, whole.layers + 1):
            size, deep = one + (layers - 1) * (two - one), msgspec.structs.replace(shape, layers=layers)
            if size <= limit and deep != whole:
                found.append((size, deep))
    if not found:
        raise ConfigError(
            f"no student with at most {fraction:g} of the teacher's parameters can be derived",
            hint="Most are in its vocabulary: trim that when compressing, or name a larger share.",
        )
    largest = max(size for size, _ in found)
    near = [(shape.layers, size, shape) for size, shape in found if size >= 0.95 * largest]
    return max(near, key=lambda entry: entry[:2])[2]


def _shapes(whole: Shape, width: bool) -> list[Shape]:
    """Widths, all of them in proportion; the depth is whole."""
    if not width:
        return [whole]
    found = []
    groups = whole.heads // whole.kv_heads
    for hidden in [*range(_STEP, whole.hidden, _STEP), whole.hidden]:
        share = hidden / whole.hidden
        kv = max(1, round(whole.kv_heads * share))
        ffn = min(whole.ffn, max(_STEP, round(whole.ffn * share / _STEP) * _STEP))
        found.append(Shape(whole.layers, hidden, ffn, kv * groups, kv) if hidden < whole.hidden else whole)
    return found


def config_with(config: Any, shape: Shape) -> Any:
    """A teacher's configuration with other sizes; heads keep theirs."""
    whole = shape_of(config)
    made = copy.deepcopy(config)
    if shape != msgspec.structs.replace(whole, layers=shape.layers):
        made.head_dim = getattr(config, "head_dim", None) or whole.hidden // whole.heads
        made.hidden_size, made.intermediate_size = shape.hidden, shape.ffn
        made.num_attention_heads, made.num_key_value_heads = shape.heads, shape.kv_heads
    kept = kept_layers(whole.layers, shape.layers)
    if getattr(made, "layer_types", None):
        made.layer_types = [config.layer_types[layer] for layer in kept]
    made.num_hidden_layers = shape.layers
    return made


def count_parameters(config: Any, shape: Shape) -> int:
    """Parameters of a shape, a tied table once."""
    with torch.device("meta"), quiet_transformers():
        model = model_class(config.model_type).from_config(config_with(config, shape))
    return sum(p.numel() for p in model.parameters())


def kept_layers(layers: int, wanted: int) -> list[int]:
    """At even distances, with the first and the last."""
    if wanted == 1:
        return [layers - 1]
    return [round(number * (layers - 1) / (wanted - 1)) for number in range(wanted)]


def require_shape(config: Any, shape: Shape) -> None:
    """See that a student of this shape can be derived from a teacher of this configuration.

    Raises:
        ConfigError: a size that is larger than the teacher's, or sizes that do not go together.
        UnsupportedError: another width, of a family whose matrices are arranged otherwise.
    """
    whole = shape_of(config)
    if _is_narrower(shape, whole) and config.model_type not in _WIDTH_FAMILIES:
        raise UnsupportedError(
            f"a narrower student cannot be derived from a {config.model_type}",
            hint="Give fewer layers only, or a checkpoint as --student.",
        )
    for name, value, most in zip(
        Shape.__struct_fields__, msgspec.structs.astuple(shape), msgspec.structs.astuple(whole), strict=True
    ):
        if not 1 <= value <= most:
            raise ConfigError(f"--student: {name}={value} does not lie between 1 and the teacher's {most}")
    if shape.heads * whole.kv_heads != whole.heads * shape.kv_heads:
        raise ConfigError(
            f"--student: heads={shape.heads} with kv={shape.kv_heads} is another ratio than the teacher's "
            f"{whole.heads} with {whole.kv_heads}",
            hint="Keep the ratio.",
        )
    if refused := _refused(config, shape):
        raise ConfigError(f"--student: {shape}: {refused}")


def _is_narrower(shape: Shape, whole: Shape) -> bool:
    return shape != msgspec.structs.replace(whole, layers=shape.layers)


def _refused(config: Any, shape: Shape) -> str:
    """Why the library refuses a configuration with these sizes, which it says only on writing; empty: it does not."""
    validate = getattr(config_with(config, shape), "validate", None)
    if validate is None:
        return ""
    try:
        validate()
    except StrictDataclassError as error:
        return str(error.__cause__ or error)
    return ""


def derive_student(teacher: Any, shape: Shape, items: Sequence[Item]) -> Any:
    """A model of this shape with the teacher's weights.

    Args:
        teacher: in memory, float32.
        items: some text, to see what is active.

    Raises:
        ConfigError: a size that is larger than the teacher's, or head counts that do not go together.
        UnsupportedError: another width, of a family whose matrices are arranged otherwise.
    """
    config, whole = teacher.config, shape_of(teacher.config)
    require_shape(config, shape)
    narrower = _is_narrower(shape, whole)
    with quiet_transformers():
        student = model_class(config.model_type).from_config(config_with(config, shape)).float()
    layers = kept_layers(whole.layers, shape.layers)
    chosen = _choose(teacher, shape, whole, items, layers) if narrower else None
    theirs = dict(teacher.named_parameters())
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            number = re.search(r"\.(\d+)\.", name)
            source = name[: number.start(1)] + str(layers[int(number[1])]) + name[number.end(1) :] if number else name
            value = theirs[source]
            if chosen is not None:
                value = chosen.cut(name, value, int(number[1]) if number else 0)
            parameter.copy_(value)
    return student.eval()


class _Chosen(msgspec.Struct):
    """What is kept: of the hidden dimensions, and of each layer's heads and channels."""

    hidden: torch.Tensor
    queries: list[torch.Tensor]
    keys: list[torch.Tensor]
    ffn: list[torch.Tensor]

    def cut(self, name: str, value: torch.Tensor, layer: int) -> torch.Tensor:
        """The part of a teacher's parameter that the student has."""
        leaf = name.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]
        rows = {
            "q_proj": self.queries, "k_proj": self.keys, "v_proj": self.keys, "gate_proj": self.ffn, "up_proj": self.ffn
        }  # fmt: skip
        columns = {"o_proj": self.queries, "down_proj": self.ffn}
        if leaf in ("q_norm", "k_norm"):
            return value
        if leaf in rows:
            value = value.index_select(0, rows[leaf][layer])
            return value.index_select(1, self.hidden) if value.dim() == 2 else value
        if leaf in columns:
            value = value.index_select(0, self.hidden)
            return value.index_select(1, columns[leaf][layer]) if value.dim() == 2 else value
        if value.dim() == 2:  # tables
            return value.index_select(1, self.hidden)
        return value.index_select(0, self.hidden)


def _choose(teacher: Any, shape: Shape, whole: Shape, items: Sequence[Item], layers: list[int]) -> _Chosen:
    """Keep what is most active."""
    size = getattr(teacher.config, "head_dim", None) or whole.hidden // whole.heads
    active = _activity(teacher, items)
    hidden = active["hidden"].topk(shape.hidden).indices.sort().values
    queries, keys, channels = [], [], []
    groups = whole.heads // whole.kv_heads
    for layer in layers:
        heads = active[f"heads.{layer}"].reshape(whole.kv_heads, groups * size).sum(-1)
        kept = heads.topk(shape.kv_heads).indices.sort().values
        keys.append((kept[:, None] * size + torch.arange(size)).flatten())
        of_group = kept[:, None] * groups * size + torch.arange(groups * size)
        queries.append(of_group.flatten())
        channels.append(active[f"ffn.{layer}"].topk(shape.ffn).indices.sort().values)
    return _Chosen(hidden, queries, keys, channels)


def _activity(teacher: Any, items: Sequence[Item]) -> dict[str, torch.Tensor]:
    """Mean absolute activations: `hidden` (H,) over all layers, `heads.N` and `ffn.N` of each."""
    sums: dict[str, torch.Tensor] = {}

    def adder(name: str) -> Any:
        def add(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            values = inputs[0].detach().abs().flatten(0, -2).sum(0)
            sums[name] = sums.get(name, torch.zeros_like(values)) + values

        return add

    hooks = []
    for name, module in teacher.named_modules():
        number = re.search(r"\.(\d+)\.", name)
        layer = number[1] if number else ""
        if name.endswith("o_proj"):
            hooks.append(module.register_forward_pre_hook(adder(f"heads.{layer}")))
        elif name.endswith("down_proj"):
            hooks.append(module.register_forward_pre_hook(adder(f"ffn.{layer}")))
        elif name.endswith(("q_proj", "gate_proj")):
            hooks.append(module.register_forward_pre_hook(adder("hidden")))
    try:
        tokens = 0
        for item in items:
            with torch.no_grad():
                teacher(collate([[item]], packed=False).ids, use_cache=False)
            tokens += len(item.ids)
            if tokens >= _ASKED_TOKENS:
                break
    finally:
        for hook in hooks:
            hook.remove()
    return sums


def parse_student(wish: str, config: Any) -> Shape | None:
    """`0.25x` or `layers=4,hidden=128,…` as a shape; None: it names a checkpoint.

    Raises:
        ConfigError: a share that is none, an unknown size, or see `require_shape`.
        UnsupportedError: see there.
    """
    if not wish.strip():
        raise ConfigError("--student is empty", hint="Name a checkpoint, a share like 0.25x, or sizes like layers=4.")
    if re.fullmatch(r"[0-9.]+x", wish):
        try:
            share = float(wish[:-1])
        except ValueError as error:
            raise ConfigError(f"--student {wish!r} is no share", hint="Write it like 0.25x.") from error
        if not 0 < share < 1:
            raise ConfigError(f"--student {wish}: a share lies between 0 and 1", hint="Write it like 0.25x.")
        return choose_shape(config, share)
    if "=" not in wish:
        return None
    whole = shape_of(config)
    names = {"layers": "layers", "hidden": "hidden", "ffn": "ffn", "heads": "heads", "kv": "kv_heads"}
    changes: dict[str, int] = {}
    for part in wish.split(","):
        key, _, value = part.partition("=")
        if key.strip() not in names or not value.strip().isdigit():
            raise ConfigError(
                f"--student: {part!r} is no size", hint="Write it like layers=4,hidden=128,ffn=384,heads=4,kv=2."
            )
        changes[names[key.strip()]] = int(value)
    shape = msgspec.structs.replace(whole, **changes)
    require_shape(config, shape)
    return shape
