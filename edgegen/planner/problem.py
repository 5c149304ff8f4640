"""The planner's question, as numbers: which tensors, which options, which budgets."""

from __future__ import annotations

import msgspec
import numpy as np

from edgegen.planner.allocate import Budget
from edgegen.planner.cost import Device, attention_s, constant_rss, copies, in_prompt, is_read
from edgegen.records.model import ModelSummary, Task, TensorInfo
from edgegen.records.plan import Option, Settings, VocabularyChoice
from edgegen.records.profile import Budgets, Workload

Floats = np.ndarray


class VocabularyCase(msgspec.Struct, frozen=True):
    """One vocabulary size with what it does to the file."""

    choice: VocabularyChoice
    summary: ModelSummary
    """With that many rows."""
    options: dict[str, tuple[Option, ...]]
    """Tensor name → what it may become, cheapest first; a single one where there is no choice."""
    overhead_bytes: int
    """File bytes that are no weights."""


class Problem(msgspec.Struct, frozen=True):
    """Everything that decides a plan."""

    cases: tuple[VocabularyCase, ...]
    """At least one; the first is the whole vocabulary."""
    settings: Settings
    device: Device
    budgets: Budgets
    workload: Workload
    prefer: str
    """quality, size or speed."""
    kl_scale: float = 1.0
    """Correction of summed KL, from measuring an earlier choice as a whole."""
    kl_floor: float = 0.0
    """KL that the runtime's own rounding of activations costs, whatever the weights."""
    beside: tuple[Problem, ...] = ()
    """The same choice on other runtimes, whose budgets count too: cases, tensors and options in the same order."""

    @property
    def task(self) -> Task:
        """Whether `kl` is KL divergence in nats per token, or an encoder's 1 - cosine similarity."""
        return self.cases[0].summary.task


def tensors_of(case: VocabularyCase) -> list[TensorInfo]:
    """In the order that solutions use."""
    return list(case.summary.tensors)


def column(case: VocabularyCase, what: str, device: Device) -> tuple[Floats, ...]:
    """One number an option, for each tensor: kl, bytes, resident_bytes, read_bytes, kernel_s or prompt_s."""
    result = []
    for tensor in tensors_of(case):
        options = case.options[tensor.name]
        if what == "kl":
            values = [option.kl for option in options]
        elif what == "bytes":
            values = [float(option.bytes) for option in options]
        elif what == "resident_bytes":
            values = [
                device.resident_bytes(o.grid, o.bytes) * copies(case.summary, tensor, o.grid, device) for o in options
            ]
        elif what == "prompt_s":
            each = [device.prefill_seconds_per_weight[o.grid] for o in options]
            values = [tensor.weights * seconds * in_prompt(tensor.role) for seconds in each]
        elif not is_read(case.summary, tensor.role):
            values = [0.0] * len(options)
        elif what == "read_bytes":
            values = [device.read_bytes(option.grid, option.bytes) for option in options]
        else:
            values = [tensor.weights * device.seconds_per_weight[option.grid] for option in options]
        result.append(np.array(values))
    return tuple(result)


def budget_rows(problem: Problem, case: VocabularyCase, *, without: frozenset[str] = frozenset()) -> list[Budget]:
    """The budgets as linear limits, those of the other runtimes too.

    A limit below what no weights at all would need stays, and makes it infeasible.
    """
    rows = _own_rows(problem, case, without)
    for other in problem.beside:
        rows += budget_rows(other, other.cases[problem.cases.index(case)], without=without)
    return rows


def _own_rows(problem: Problem, case: VocabularyCase, without: frozenset[str]) -> list[Budget]:
    limits = problem.budgets
    device = problem.device
    rows: list[Budget] = []
    sizes = column(case, "bytes", device)
    if limits.max_bytes is not None and "max_bytes" not in without:
        rows.append(Budget("max_bytes", sizes, limits.max_bytes - case.overhead_bytes))
    if limits.max_rss_bytes is not None and "max_rss" not in without:
        free = limits.max_rss_bytes - constant_rss(case.summary, problem.settings, device)
        rows.append(
            Budget(
                "max_rss",
                column(case, "resident_bytes", device),
                free / device.resident_fraction - case.overhead_bytes,
            )
        )
    if limits.max_kl is not None and "max_kl" not in without:
        room = limits.max_kl - problem.kl_floor - case.choice.kl
        rows.append(Budget("max_kl", column(case, "kl", device), room / problem.kl_scale))
    allowed_s = allowed_token_s(problem, case, without)
    if allowed_s is not None:
        rows += [Budget("min_tok_s", seconds, allowed_s) for seconds in token_s(problem, case)]
    if limits.max_ttft_ms is not None and "max_ttft" not in without:
        room_s = _first_token_room(problem, case)
        rows += [Budget("max_ttft", seconds, room_s) for seconds in first_token_s(problem, case)]
    return rows


def allowed_token_s(problem: Problem, case: VocabularyCase, without: frozenset[str]) -> float | None:
    """Seconds that weights may take for one token, attention and dispatch left out; None without a speed budget."""
    if problem.budgets.min_tokens_per_s is None or "min_tok_s" in without:
        return None
    together = problem.workload.prompt_tokens if case.summary.task == "encoder" else 1
    dispatch = case.summary.layers * problem.device.dispatch_s / together
    return 1 / problem.budgets.min_tokens_per_s - dispatch - attention_s(case.summary, problem.settings, problem.device)


def first_token_s(problem: Problem, case: VocabularyCase) -> list[tuple[Floats, ...]]:
    """Seconds that each option adds to the time to first token: the prompt, then one decoded token.

    Twice, as the token is bound by the kernels and as it is bound by reading; the larger sum counts.
    """
    device, number = problem.device, problem.workload.prompt_tokens
    prompt = column(case, "prompt_s", device)
    if case.summary.task == "encoder":
        return [tuple(number * p / device.threads for p in prompt)]
    token = token_s(problem, case)
    return [tuple(number * p / device.threads + t for p, t in zip(prompt, bound, strict=True)) for bound in token]


def token_s(problem: Problem, case: VocabularyCase) -> list[tuple[Floats, ...]]:
    """Seconds that each option adds to a decoded token, by its kernels and by reading; the larger sum counts.

    An encoder's tokens are those of a text, read as a whole.
    """
    device = problem.device
    if case.summary.task == "encoder":
        return [tuple(seconds / device.threads for seconds in column(case, "prompt_s", device))]
    kernels = tuple(seconds / device.threads for seconds in column(case, "kernel_s", device))
    reading = tuple(count / device.bandwidth_bytes_per_s for count in column(case, "read_bytes", device))
    return [kernels, reading]


def _first_token_room(problem: Problem, case: VocabularyCase) -> float:
    """Seconds of the time to first token that dispatch and attention leave to the weights."""
    if case.summary.task == "encoder":
        return (problem.budgets.max_ttft_ms or 0.0) / 1000 - case.summary.layers * problem.device.dispatch_s
    prompt = problem.workload.prompt_tokens
    dispatch = case.summary.layers * problem.device.dispatch_s
    ubatch = max(1, min(problem.settings.ubatch_tokens, prompt))
    decoded = dispatch + attention_s(case.summary, problem.settings, problem.device)
    return (problem.budgets.max_ttft_ms or 0.0) / 1000 - prompt * dispatch / ubatch - decoded
