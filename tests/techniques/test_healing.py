"""Healing: changed layers and whole models come nearer to the original, never farther; cut off, it goes on."""

from __future__ import annotations

import copy
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from edgegen.errors import ConfigError
from edgegen.modeling.blocks import Blocks, decoder_layers
from edgegen.modeling.forward import counted_log_probs, mean_kl
from edgegen.modeling.load import find_model, open_model, open_tokenizer
from edgegen.modeling.structure import replace_module, shared_of
from edgegen.modeling.text import Window, make_windows
from edgegen.records.data import Example
from edgegen.records.healing import Healed
from edgegen.techniques import healing_options
from edgegen.techniques.blockwise import HiddenStates, groups_of, places_of
from edgegen.techniques.healing import HealingOptions, heal, items_of, zeros_of
from edgegen.training.batches import Item, encode
from tests.tiny_models import make_tiny, sample_texts

_OPTIONS = HealingOptions(tokens=3000, batch=4, max_tokens=32, rate=2.5e-3, blockwise_rate=6e-3, looks=2)


class Case(msgspec.Struct):
    original: Any
    items: list[Item]
    heldout: list[Window]


def made(folder: Path, family: str = "llama") -> Case:
    if not folder.exists():
        make_tiny(family, folder, layers=4, hidden=32, ffn=64)
    tokenizer = open_tokenizer(folder)
    examples = tuple(Example(text=text) for text in sample_texts(60, words=16))
    return Case(
        open_model(find_model(str(folder)), parameters=100_000),
        encode(tokenizer, examples[:50], max_tokens=32),
        make_windows(tokenizer, examples[50:], max_tokens=300, window_tokens=32),
    )


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return made(tmp_path_factory.mktemp("healing") / "llama")


def without(original: Any, *dropped: int) -> tuple[Any, list[int]]:
    """A copy that has lost some layers, and the numbers of those that it has."""
    model = copy.deepcopy(original)
    layers = decoder_layers(model)
    kept = [number for number in range(len(layers)) if number not in dropped]
    chosen = torch.nn.ModuleList([layers[number] for number in kept])
    model.config.num_hidden_layers = len(kept)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[number] for number in kept]
    name = next(name for name, module in model.named_modules() if module is layers)
    replace_module(model, name, chosen)
    return model, kept


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(ones: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return ones.keys() == others.keys() and all(torch.equal(ones[name], others[name]) for name in ones)


def distance(case: Case, model: Any) -> float:
    return mean_kl(counted_log_probs(case.original, case.heldout), counted_log_probs(model, case.heldout))


@pytest.mark.parametrize("family", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_a_shallower_model_comes_nearer(family: str, tmp_path: Path) -> None:
    case = made(tmp_path / family, family)
    model, kept = without(case.original, 2)
    before = distance(case, model)
    said: list[str] = []
    healed = heal(
        model, case.original, kept, [], case.items, case.heldout, tmp_path / "work", _OPTIONS,
        progress=lambda done, steps, words: said.append(words),
    )  # fmt: skip
    assert healed.kept and healed.kl_before == pytest.approx(before, rel=1e-3)
    assert healed.kl_after == pytest.approx(distance(case, model), rel=1e-3)
    assert healed.kl_after < 0.9 * before
    (layer,) = healed.layers
    assert layer.layers == (1,) and layer.after < 0.95 * layer.before
    assert healed.kl_blockwise is not None and healed.kl_after < healed.kl_blockwise < before
    assert 900 <= healed.blockwise_tokens <= 1200 and 2900 <= healed.tokens <= 3300
    assert said[0].startswith("layer 1: loss") and said[-1].startswith("all layers: loss")
    assert not any(p.requires_grad for p in model.parameters()) and not model.training
    if family == "llama":
        assert (
            model.lm_head.weight is not model.get_input_embeddings().weight or case.original.config.tie_word_embeddings
        )
    assert sorted(p.name for p in (tmp_path / "work").iterdir()) == ["healed.safetensors", "healing.json"]

    again, _ = without(case.original, 2)
    assert heal(again, case.original, kept, [], case.items, case.heldout, tmp_path / "work", _OPTIONS) == healed
    assert same(weights(again), weights(model))


def test_what_cannot_get_better_stays_as_it_is(case: Case, tmp_path: Path) -> None:
    model = copy.deepcopy(case.original)
    healed = heal(model, case.original, [0, 1, 2, 3], [1], case.items, case.heldout, tmp_path / "a", _OPTIONS)
    assert not healed.kept and healed.kl_after == healed.kl_before < 1e-6
    assert same(weights(model), weights(case.original))
    wild = msgspec.structs.replace(_OPTIONS, rate=3.0, blockwise=False, tokens=600)
    model, kept = without(case.original, 2)
    before = weights(model)
    healed = heal(model, case.original, kept, [], case.items, case.heldout, tmp_path / "b", wild)
    assert not healed.kept and healed.kl_after == healed.kl_before and healed.layers == ()
    assert same(weights(model), before)


class _CutError(Exception):
    pass


@pytest.fixture(scope="module")
def whole(case: Case, tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[Any, ...], Healed, Any]:
    """Arguments, and what a healing that was not cut off gives."""
    model, kept = without(case.original, 2)
    arguments = (case.original, kept, [0], case.items, case.heldout)
    return arguments, heal(model, *arguments, tmp_path_factory.mktemp("whole"), _OPTIONS), model


@pytest.mark.parametrize("at", [pytest.param(3, marks=pytest.mark.slow), 13, pytest.param(22, marks=pytest.mark.slow)])
def test_cut_off_anywhere_it_ends_with_the_same_weights(at: int, whole: Any, case: Case, tmp_path: Path) -> None:
    arguments, expected, finished = whole
    model, _ = without(case.original, 2)
    start, told = weights(model), []

    def cut(done: int, steps: int, words: str) -> None:
        told.append(words)
        if len(told) == at:
            raise _CutError

    with pytest.raises(_CutError):
        heal(model, *arguments, tmp_path / "work", _OPTIONS, progress=cut)
    assert same(weights(model), start)
    said: list[str] = []
    found = heal(model, *arguments, tmp_path / "work", _OPTIONS, progress=lambda d, s, words: said.append(words))
    assert same(weights(model), weights(finished))
    assert msgspec.structs.replace(found, seconds=0.0) == msgspec.structs.replace(expected, seconds=0.0)
    assert [entry.layers for entry in found.layers] == [(0,), (1,)]
    assert said[-1].startswith("all layers")
    assert any(words.startswith("layer 0") for words in said) is (at < 10)
    assert any(words.startswith("layer ") for words in said) is (at < 20)


def test_another_healing_takes_the_folder(case: Case, tmp_path: Path) -> None:
    for tokens in (400, 500):
        model, kept = without(case.original, 2)
        options = msgspec.structs.replace(_OPTIONS, tokens=tokens, blockwise=False)
        found = heal(model, case.original, kept, [], case.items, case.heldout, tmp_path, options)
        assert tokens <= found.tokens < tokens + 100


@pytest.mark.slow
def test_a_killed_healing_goes_on(tmp_path: Path) -> None:
    case = made(tmp_path / "model")
    program = f"""
import sys; from pathlib import Path
from tests.techniques.test_healing import _OPTIONS, heal, made, without
case = made(Path({str(tmp_path / "model")!r}))
model, kept = without(case.original, 2)
def told(done, steps, words): print(words, flush=True)
heal(model, case.original, kept, [], case.items, case.heldout, Path(sys.argv[1]), _OPTIONS, progress=told)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "work")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    seen = 0
    for line in process.stdout:
        seen += line.startswith("all layers")
        if seen == 9:
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    model, kept = without(case.original, 2)
    heal(model, case.original, kept, [], case.items, case.heldout, tmp_path / "work", _OPTIONS)
    whole, _ = without(case.original, 2)
    heal(whole, case.original, kept, [], case.items, case.heldout, tmp_path / "whole", _OPTIONS)
    assert same(weights(model), weights(whole))


def test_shared_factorised_and_sparse_weights_learn_as_such(case: Case, tmp_path: Path) -> None:
    model = copy.deepcopy(case.original)
    layers = decoder_layers(model)
    for name in ("gate_proj", "up_proj", "down_proj"):
        getattr(layers[2].mlp, name).weight = getattr(layers[1].mlp, name).weight
    query = layers[0].self_attn.q_proj
    left, values, right = torch.linalg.svd(query.weight, full_matrices=False)
    pair = torch.nn.Sequential(
        torch.nn.Linear(query.in_features, 8, bias=False), torch.nn.Linear(8, query.out_features, bias=False)
    )
    pair[0].weight.data = values[:8, None] * right[:8]
    pair[1].weight.data = left[:, :8].contiguous()
    replace_module(model, f"{next(n for n, m in model.named_modules() if m is layers)}.0.self_attn.q_proj", pair)
    sparse = layers[3].mlp.up_proj.weight
    sparse.data[sparse.abs() < sparse.abs().median()] = 0.0
    masks, start, shared = zeros_of(model), weights(model), shared_of(model)
    assert list(masks) == [name for name, p in model.named_parameters() if p is sparse]

    arguments = (case.original, [0, 1, 2, 3], [0, 1, 3], case.items, case.heldout)
    healed = heal(model, *arguments, tmp_path / "work", _OPTIONS, masks=masks)
    assert [entry.layers for entry in healed.layers] == [(0,), (1, 2), (3,)]
    assert all(entry.after < entry.before for entry in healed.layers)
    assert healed.kept and healed.kl_blockwise is not None and healed.kl_after < healed.kl_blockwise
    assert shared_of(model) == shared and shared
    after = weights(model)
    changed = {name for name in after if not torch.equal(after[name], start[name])}
    assert {name for name in after if ".mlp." in name or "q_proj" in name} <= changed
    assert torch.equal(sparse != 0, next(iter(masks.values())))
    assert any("embed_tokens" in name for name in changed)
    if case.original.config.tie_word_embeddings:
        assert model.lm_head.weight is model.get_input_embeddings().weight


def test_only_the_changed_layers_learn_by_themselves(case: Case, tmp_path: Path) -> None:
    model, kept = without(case.original, 1)
    start = weights(model)

    def stop(done: int, steps: int, words: str) -> None:
        if words.startswith("all layers"):
            now = weights(model)
            raise _CutError({name for name in now if not torch.equal(now[name], start[name])})

    # The rate rises from almost nothing, so that the first step of the whole model changes no weight by much.
    options = msgspec.structs.replace(_OPTIONS, rate=1e-30)
    with pytest.raises(_CutError) as caught:
        heal(model, case.original, kept, [], case.items, case.heldout, tmp_path / "work", options, progress=stop)
    (changed,) = caught.value.args
    assert changed and all(".layers.0." in name for name in changed)


def test_bfloat16_computes_and_leaves_float32(tmp_path: Path) -> None:
    case = made(tmp_path / "model")
    case.original.to(torch.bfloat16)
    model, kept = without(case.original, 2)
    options = msgspec.structs.replace(_OPTIONS, bf16=True, tokens=1500)
    healed = heal(model, case.original, kept, [], case.items, case.heldout, tmp_path / "work", options)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert healed.kept and healed.kl_after == pytest.approx(distance(case, model), rel=0.02)
    assert "forward" not in vars(model)
    plain = msgspec.structs.replace(options, bf16=False, tokens=200)
    assert heal(model, case.original, kept, [], case.items, case.heldout, tmp_path / "plain", plain).tokens > 0


def test_places_and_groups() -> None:
    spans = lambda kept, layers: [(p.start, p.end) for p in places_of(kept, layers)]  # noqa: E731
    assert spans([0, 1, 4, 5], 6) == [(0, 1), (1, 4), (4, 5), (5, 6)]
    assert spans([1, 2], 4) == [(0, 2), (2, 4)]
    for kept in ([], [1, 1], [2, 1], [0, 4]):
        with pytest.raises(ConfigError, match="must ascend"):
            places_of(kept, 4)
    layers = [torch.nn.Linear(2, 2) for _ in range(4)]
    layers[3].weight = layers[0].weight
    places = places_of([0, 1, 2, 5], 6)
    numbers = lambda changed: [[p.layer for p in group] for group in groups_of(layers, places, changed)]  # noqa: E731
    assert numbers([]) == [[2]]
    assert numbers([3]) == [[0, 3], [2]]


def test_hidden_states_are_the_same_on_disk(case: Case, tmp_path: Path) -> None:
    items = items_of([*case.items, *case.heldout])
    found = []
    for number, most in enumerate((1 << 30, 0)):
        states = HiddenStates(Blocks(case.original), items, tmp_path / str(number), most_bytes=most)
        for _ in range(3):
            states.advance({0})
        assert states.boundary == 2
        assert [p.name for p in sorted(tmp_path.glob(f"{number}/*"))] == (["00000.npy", "00002.npy"] if number else [])
        found.append([states.at(boundary, [3, 40])[0] for boundary in (0, 2)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    with torch.no_grad():
        ids = torch.from_numpy(items[40].ids)[None]
        expected = case.original(ids, output_hidden_states=True).hidden_states[2][0]
    assert torch.allclose(found[0][1][1, : len(expected)], expected, atol=1e-4)


def test_seconds_become_steps_once(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def timed(module: Any, learn: Any) -> float:
        asked.append(module)
        learn()
        for parameter in module.parameters():
            parameter.grad = None
        return 10.0

    for module in ("edgegen.techniques.healing", "edgegen.training.timing"):
        monkeypatch.setattr(f"{module}.seconds_a_step", timed)
    options = msgspec.structs.replace(_OPTIONS, tokens=0, seconds=400.0)
    calls = 0

    def cut(done: int, steps: int, words: str) -> None:
        nonlocal calls
        calls += words.startswith("all layers")
        if calls == 4:
            raise _CutError

    model, kept = without(case.original, 2)
    arguments = (case.original, kept, [], case.items, case.heldout, tmp_path / "work", options)
    with pytest.raises(_CutError):
        heal(model, *arguments, progress=cut)
    state = json.loads((tmp_path / "work" / "healing.json").read_text())
    each = sum(item.tokens for item in case.items) / len(case.items)
    assert state["layer_tokens"] == pytest.approx(13 * 4 * each, rel=0.1)
    assert 25 <= state["steps"] <= 40
    healed = heal(model, *arguments)
    assert len(asked) == 2
    assert healed.kept and healed.tokens == pytest.approx(healed.blockwise_tokens + state["steps"] * 4 * each, rel=0.1)
    model, _ = without(case.original, 2)
    none = msgspec.structs.replace(options, seconds=5.0)
    assert heal(model, *arguments[:-2], tmp_path / "none", none).tokens == 0


def test_rates_follow_the_root_of_the_distance() -> None:
    rates = [healing_options.rate_for(0.01, distance) for distance in (0.0, 0.01, 0.25, 1.0, 9.0)]
    assert rates == pytest.approx([1e-5, 1e-3, 5e-3, 1e-2, 1e-2])


def test_what_does_not_fit_is_named(case: Case, tmp_path: Path) -> None:
    model, kept = without(case.original, 2)
    embedding = "model.embed_tokens.weight"

    def tried(kept: list[int] = kept, changed: tuple[int, ...] = (), masks: Any = None, **options: Any) -> None:
        heal(
            model, case.original, kept, changed, case.items, case.heldout, tmp_path / "work",
            msgspec.structs.replace(_OPTIONS, **options), masks=masks,
        )  # fmt: skip

    for arguments, said in (
        ({"tokens": 0}, "needs a budget"),
        ({"seconds": -1.0}, "needs a budget"),
        ({"loss": "mse"}, "'mse' is unknown"),
        ({"rate": 0.0}, "rate above 0"),
        ({"blockwise_share": 1.0}, "between 0 and 1"),
        ({"max_tokens": 1}, "2 tokens"),
        ({"kept": [0, 1]}, "has 3 layers"),
        ({"changed": (3,)}, "has 3 layers"),
        ({"masks": {"x": torch.ones(1)}}, "does not have"),
        ({"masks": {embedding: torch.zeros(model.get_input_embeddings().weight.shape).bool()}}, "zeros that are none"),
    ):
        with pytest.raises(ConfigError, match=said):
            tried(**arguments)
    with pytest.raises(ConfigError, match="other text to judge on"):
        heal(model, case.original, kept, [], case.items, [], tmp_path / "work", _OPTIONS)
    assert not (tmp_path / "work").exists()
