"""Moved embeddings, and whose fault a change is."""

import numpy as np

from edgegen.fleet.drift.embeddings import LEAST_REPORTS, compare_embeddings
from edgegen.fleet.drift.faults import Evidence, canary_change, whose_fault
from edgegen.records.monitor import Verdict
from edgegen.records.telemetry import Canary, Embedding


def windows(dice: np.random.Generator, count: int, shift: float = 0.0, size: int = 32) -> list[Embedding]:
    """Reports whose means differ by more than their answers explain, as those of different users do."""
    return [
        Embedding("r", "prompts", 40, tuple(dice.normal(shift, 0.3, size).tolist()), tuple([1.0] * size))
        for _ in range(count)
    ]


def canary(**changes: object) -> Canary:
    values = {"release": "r", "prompt": 0, "agreed": 8, "expected": 8, "log_prob_drop": 0.0, **changes}
    return Canary(**values)  # type: ignore[arg-type]


def test_moved_embeddings_are_found_and_others_are_not() -> None:
    dice = np.random.default_rng(0)
    alarms = [compare_embeddings(windows(dice, 15), windows(dice, 10)).verdict for _ in range(8)]
    assert alarms.count(Verdict.WATCH) <= 1
    moved = compare_embeddings(windows(dice, 15), windows(dice, 10, 0.3))
    assert moved.verdict is Verdict.WATCH and moved.n == 400
    assert moved.mahalanobis is not None and moved.threshold is not None and moved.mahalanobis > moved.threshold
    assert moved.cosine is not None and 0 <= moved.cosine <= 2


def test_few_or_unlike_embeddings_are_no_verdict() -> None:
    dice = np.random.default_rng(0)
    assert compare_embeddings([], []).verdict is Verdict.TOO_FEW
    assert compare_embeddings(windows(dice, 20), windows(dice, LEAST_REPORTS - 1)).verdict is Verdict.TOO_FEW
    assert compare_embeddings(windows(dice, 20), windows(dice, 20, size=8)).verdict is Verdict.TOO_FEW
    same = [Embedding("r", "prompts", 40, (0.0, 1.0), (0.0, 0.0))] * 10
    assert compare_embeddings(same, same).verdict is Verdict.OK


def test_how_a_golden_answer_changed() -> None:
    assert canary_change([]) == "" and canary_change([canary()]) == "" and canary_change([canary(), canary()]) == ""
    assert canary_change([canary(agreed=5), canary(agreed=5, log_prob_drop=0.01)]) == ""
    assert "3 of 8" in canary_change([canary(), canary(agreed=3)])
    assert "0.40 nats a token less" in canary_change([canary(), canary(log_prob_drop=0.4)])
    assert "otherwise" in canary_change([canary(ids=(1, 2)), canary(ids=(1, 3))])


def test_a_change_on_most_devices_is_no_devices_fault() -> None:
    changed = {0: [canary(), canary(agreed=2)], 1: [canary(), canary(agreed=1)]}
    assert whose_fault(Evidence(changed, others_changed=1, others=9)).startswith("device: golden prompt 0")
    assert "(and 1 more)" in whose_fault(Evidence(changed))
    assert whose_fault(Evidence(changed, others_changed=8, others=9)).startswith("release: ")


def test_a_fault_of_the_device_goes_before_moved_data() -> None:
    broken = Evidence({0: [canary(), canary(intact=False)]}, inputs=("prompt_tokens",))
    assert whose_fault(broken).startswith("device: the release's files")
    assert whose_fault(Evidence({}, inputs=("prompt_tokens",))).endswith("golden prompts were not asked again")


def test_what_cannot_be_told_is_nobodys() -> None:
    assert whose_fault(Evidence({})) == ""
    assert whose_fault(Evidence({}, outputs=("refusal",))) == ""
    assert whose_fault(Evidence({}, outputs=("refusal",), elsewhere=("repetition",))) == ""
