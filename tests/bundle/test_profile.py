"""The histograms that are signed with a release."""

from edgegen.bundle.profile import EDGES, Answer, metrics_of, profile
from edgegen.runtime.features import features


def answer(text: str, tokens: int, **numbers: float) -> Answer:
    return Answer(prompt_tokens=9, answer_tokens=tokens, features=features(text), **numbers)


def test_every_metric_has_a_value_or_none() -> None:
    assert set(metrics_of(answer("A kettle.", 3))) == set(EDGES)
    nothing = metrics_of(answer("", 0))
    assert nothing["empty"] == 1 and nothing["refusal"] == 0 and nothing["prompt_tokens"] == 9
    assert nothing["repetition"] is None and nothing["characters_per_token"] is None


def test_counts_are_of_the_bins_between_edges() -> None:
    found = profile([answer("A kettle.", 3, mean_log_prob=-0.5), answer("", 0), answer("x " * 200, 400)])
    assert found.counts["answer_tokens"] == (1, 0, 1, 0, 0, 0, 0, 0, 1)
    assert found.counts["empty"] == (2, 1)
    assert sum(found.counts["mean_log_prob"]) == 1 and found.counts["mean_log_prob"][8] == 1  # -0.5 begins its bin
    assert "byte_fraction" not in found.edges and "mean_entropy" not in found.counts
    assert all(len(found.counts[metric]) == len(edges) + 1 for metric, edges in found.edges.items())
    assert all(list(edges) == sorted(set(edges)) for edges in EDGES.values())


def test_no_answers_make_no_profile() -> None:
    assert profile([]).counts == {}
