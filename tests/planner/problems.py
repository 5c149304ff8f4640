"""Small problems made by hand or by chance, and what enumerating every choice says about them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import msgspec
import numpy as np

from edgegen.planner.cost import Device
from edgegen.planner.explain import value_of
from edgegen.planner.problem import Problem, VocabularyCase
from edgegen.planner.solve import Solution, expected_kl, prediction_of
from edgegen.records.model import ModelSummary, Role, TensorInfo
from edgegen.records.plan import Option, Prediction, Settings, VocabularyChoice
from edgegen.records.profile import Budgets, Workload

DEVICE = Device(
    bandwidth_bytes_per_s=1e6,
    threads=2,
    seconds_per_weight={"q8": 4e-6, "q4": 2e-6, "q2": 3e-6, "f32": 8e-6},
    prefill_seconds_per_weight={"q8": 2e-6, "q4": 1e-6, "q2": 3e-6, "f32": 8e-6},
    rearranged=frozenset({"q4"}),
    dispatch_s=1e-3,
    process_bytes=1000.0,
    fixed_buffer_bytes=100.0,
    bytes_per_ubatch_hidden=2.0,
    bytes_per_ubatch_ffn=3.0,
    bytes_per_ubatch_vocab=0.5,
    bytes_per_vocab_entry=10.0,
    resident_fraction=1.0,
    kv_bits=16.0,
    context_step_tokens=256,
)
SETTINGS = Settings(context_tokens=300, ubatch_tokens=16, threads=2, kv_type="f16")
BITS = {"q2": 2, "q4": 4, "q8": 8, "f32": 32}
_LIMITS = ("max_bytes", "max_rss", "min_tok_s", "max_ttft", "max_kl")


def tensor(name: str, role: Role = "ffn_in", rows: int = 8, columns: int = 8) -> TensorInfo:
    return TensorInfo(name=name, role=role, layer=0, rows=rows, columns=columns, quantizable=role != "vector")


def summary_of(tensors: tuple[TensorInfo, ...], *, vocab_size: int = 16, tied: bool = True) -> ModelSummary:
    return ModelSummary(
        family="llama",
        tensors=tensors,
        vocab_size=vocab_size,
        hidden_size=8,
        layers=2,
        heads=2,
        kv_heads=1,
        head_size=4,
        ffn_size=8,
        context_tokens=512,
        tied=tied,
        dtype="float32",
        bytes=sum(4 * t.weights for t in tensors),
    )


def case_of(
    options: dict[str, tuple[Option, ...]],
    tensors: tuple[TensorInfo, ...],
    *,
    size: int = 16,
    kl: float = 0.0,
    overhead_bytes: int = 50,
    tied: bool = True,
) -> VocabularyCase:
    choice = VocabularyChoice(original_size=16, size=size, kl=kl, lost_mass_fraction=0.0, tokens_per_byte_ratio=1.0)
    summary = summary_of(tensors, vocab_size=size, tied=tied)
    return VocabularyCase(choice=choice, summary=summary, options=options, overhead_bytes=overhead_bytes)


def problem_of(*cases: VocabularyCase, prefer: str = "quality", device: Device = DEVICE, **budgets: float) -> Problem:
    limits = Budgets(**{k: int(v) if k.endswith("bytes") else v for k, v in budgets.items()})
    return Problem(
        cases=cases,
        settings=SETTINGS,
        device=device,
        budgets=limits,
        workload=Workload(context_tokens=300, prompt_tokens=20, decode_tokens=8, ubatch_tokens=16, threads=2),
        prefer=prefer,
    )


def graded_options(weights: int, sensitivity: float, grids: tuple[str, ...] = ("q2", "q4", "q8")) -> tuple[Option, ...]:
    """KL falls by four for each bit, as rounding errors do."""
    return tuple(
        Option(grid=grid, bytes=weights * BITS[grid] // 8, kl=sensitivity * 4.0 ** -BITS[grid]) for grid in grids
    )


def graded_case(sensitivities: tuple[float, ...], *, size: int = 16, kl: float = 0.0) -> VocabularyCase:
    """An embedding and blocks of one tensor each."""
    tensors = (
        tensor("embed", "embedding", rows=size),
        *(tensor(f"block{i}", "ffn_in") for i in range(len(sensitivities) - 1)),
    )
    options = {t.name: graded_options(t.weights, s) for t, s in zip(tensors, sensitivities, strict=True)}
    return case_of(options, tensors, size=size, kl=kl, overhead_bytes=10 * size)


def random_case(rng: np.random.Generator, *, size: int = 16, kl: float = 0.0) -> VocabularyCase:
    """Up to five tensors, up to four options each, in no order and with ties."""
    roles: list[Role] = ["embedding", "attention_in", "ffn_in", "ffn_out", "head"]
    tied = bool(rng.integers(2))
    tensors = tuple(
        tensor(role, role, rows=size if role in ("embedding", "head") else 8)
        for role in roles[: 4 if tied else 5]
        if rng.random() < 0.8 or role == "embedding"
    )
    options = {}
    for each in tensors:
        grids = rng.permutation(list(BITS))[: rng.integers(1, 4)]
        options[each.name] = tuple(
            Option(grid=str(g), bytes=int(rng.integers(1, 40)), kl=float(rng.choice([0.0, 0.01, rng.random()])))
            for g in grids
        )
    return case_of(options, tensors, size=size, kl=kl, overhead_bytes=int(rng.integers(0, 100)), tied=tied)


def random_problem(seed: int, prefer: str = "quality") -> Problem:
    """Limits are what some choice just reaches, or a little beside it; so ties and impossible ones come up."""
    rng = np.random.default_rng(seed)
    cases = [random_case(rng)]
    if rng.random() < 0.5:
        cases.append(random_case(rng, size=8, kl=float(rng.random() * 0.05)))
    problem = problem_of(*cases, prefer=prefer)
    everything = list(every_solution(problem))
    budgets: dict[str, float] = {}
    for name, key in zip(
        _LIMITS, ("max_bytes", "max_rss_bytes", "min_tokens_per_s", "max_ttft_ms", "max_kl"), strict=True
    ):
        if rng.random() < 0.5:
            value = price(problem, everything[rng.integers(len(everything))], name)
            just = 1 - 1e-7 if name == "min_tok_s" else 1 + 1e-7
            budgets[key] = value * rng.choice([1 - 1e-3, just, 1 + 1e-3, 1.3])
    return problem_of(*cases, prefer=prefer, **{k: v for k, v in budgets.items() if v > 0})


def as_encoder(problem: Problem) -> Problem:
    """The same problem of a model that reads texts as a whole and decodes nothing."""
    cases = tuple(
        msgspec.structs.replace(case, summary=msgspec.structs.replace(case.summary, task="encoder", tied=False))
        for case in problem.cases
    )
    return msgspec.structs.replace(problem, cases=cases)


def every_solution(problem: Problem) -> Iterator[Solution]:
    for case in problem.cases:
        for chosen in itertools.product(*(range(len(case.options[t.name])) for t in case.summary.tensors)):
            yield Solution(case=case, chosen=chosen)


def predicted(problem: Problem, solution: Solution) -> Prediction:
    return prediction_of(problem, solution, expected_kl(problem, solution))


def price(problem: Problem, solution: Solution, budget: str) -> float:
    return value_of(predicted(problem, solution), budget, solution.case.choice.kl)


def keeps(problem: Problem, solution: Solution, *, without: str = "", slack: float = 1e-9) -> bool:
    """Whether a solution's whole prediction is within the budgets; `slack` is for adding in another order."""
    limits = problem.budgets
    highest = {
        "max_bytes": limits.max_bytes,
        "max_rss": limits.max_rss_bytes,
        "max_ttft": limits.max_ttft_ms,
        "max_kl": limits.max_kl,
    }
    prediction = predicted(problem, solution)
    for name, limit in highest.items():
        asked = limit is not None and name != without
        if asked and value_of(prediction, name, solution.case.choice.kl) > limit * (1 + slack):
            return False
    least = limits.min_tokens_per_s
    return least is None or without == "min_tok_s" or prediction.decode_tokens_per_s >= least * (1 - slack)
