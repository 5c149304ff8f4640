"""Which limit on quality counts: KL of models that continue text, cosine similarity of encoders."""

import pytest

from edgegen.errors import ConfigError, UnsupportedError
from edgegen.sdk.wishes import MIN_COSINE, Times, Wishes, fit_task, resolve

PROFILE = "raspberry-pi-5-8gb"


def test_each_task_keeps_its_own_limit() -> None:
    both = resolve(PROFILE, ("gguf",), Wishes())
    causal, encoder = fit_task(both, "causal").budgets, fit_task(both, "encoder").budgets
    assert causal.max_kl == both.budgets.max_kl and causal.min_cosine is None
    assert encoder.max_kl is None and encoder.min_cosine == MIN_COSINE


def test_a_given_size_sets_the_default_aside_but_not_a_given_limit() -> None:
    sized = resolve(PROFILE, ("gguf",), Wishes(max_bytes=1000))
    assert fit_task(sized, "encoder").budgets.min_cosine is None
    exact = resolve(PROFILE, ("gguf",), Wishes(max_bytes=1000, min_cosine=0.95))
    assert fit_task(exact, "encoder").budgets.min_cosine == 0.95


@pytest.mark.parametrize(
    ("wishes", "task", "said"),
    [
        ({"min_cosine": 0.9}, "causal", "--min-cosine is for encoders"),
        ({"max_kl": 0.1}, "encoder", "--max-kl is for models that continue text"),
        ({"min_cosine": 1.0}, "encoder", "must be below 1"),
    ],
)
def test_the_other_tasks_limit_is_refused(wishes: Wishes, task: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        fit_task(resolve(PROFILE, ("gguf",), wishes), task)  # type: ignore[arg-type]


def test_litertlm_is_for_models_that_write_text_on_litert() -> None:
    with pytest.raises(ConfigError, match="--litertlm packs LiteRT artifacts"):
        resolve("pixel-8", ("gguf",), Wishes(litertlm=True))
    wanted = resolve("pixel-8", ("gguf", "litert"), Wishes(litertlm=True))
    assert fit_task(wanted, "causal").litertlm
    with pytest.raises(ConfigError, match="this is an encoder"):
        fit_task(wanted, "encoder")


@pytest.mark.parametrize(("budget", "seconds"), [("90s", 90), ("10m", 600), ("overnight", 8 * 3600), (2.5, 2.5)])
def test_a_time_budget_is_seconds_or_words(budget: str | float, seconds: float) -> None:
    times = resolve(PROFILE, ("gguf",), Wishes(budget=budget, techniques=("depth",))).times
    assert times == Times(structures=seconds)


def test_a_time_budget_is_divided_among_what_is_used() -> None:
    def times(prefer: str = "quality", *techniques: str) -> Times:
        return resolve(PROFILE, ("gguf",), Wishes(budget=100, prefer=prefer, techniques=techniques or None)).times

    assert times() == Times(structures=50, local_search=10, refinement=40)
    assert times("speed") == Times(structures=pytest.approx(100 * 5 / 9), refinement=pytest.approx(100 * 4 / 9))
    assert times("quality", "refinement") == Times(refinement=100)
    assert times("quality", "refinement", "local_search") == Times(local_search=20, refinement=80)
    assert times("quality", "refinement", "depth", "heads") == Times(
        structures=pytest.approx(100 * 5 / 9), refinement=pytest.approx(100 * 4 / 9)
    )
    wanted = resolve(PROFILE, ("gguf",), Wishes(budget=100, techniques=("refinement", "depth")))
    assert wanted.techniques == ("depth",)
    with pytest.raises(ConfigError, match="local_search looks for quality"):
        times("speed", "local_search")


def test_without_a_time_budget_nothing_is_searched() -> None:
    assert not resolve(PROFILE, ("gguf",), Wishes()).times.any


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        ({"budget": "soon"}, "--budget"),
        ({"budget": 0}, "must be above 0"),
        ({"budget": float("nan")}, "must be above 0"),
        ({"techniques": ("depth",)}, "needs time"),
        ({"techniques": ("refinement",)}, "needs time"),
        ({"budget": "1m", "techniques": ()}, "names none"),
        ({"budget": "1m", "techniques": ("magic",)}, "unknown technique 'magic'"),
    ],
)
def test_a_time_budget_that_is_none_is_refused(wishes: Wishes, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        resolve(PROFILE, ("gguf",), wishes)


def test_an_encoder_keeps_its_structure() -> None:
    with pytest.raises(ConfigError, match="--budget is for models that continue text"):
        fit_task(resolve(PROFILE, ("gguf",), Wishes(budget="1m")), "encoder")


def test_rounding_is_compensated_where_a_model_continues_text() -> None:
    auto = resolve(PROFILE, ("gguf",), Wishes())
    assert fit_task(auto, "causal").rounding == "compensated"
    assert fit_task(auto, "encoder").rounding == "plain"
    assert fit_task(resolve(PROFILE, ("gguf",), Wishes(rounding="plain")), "causal").rounding == "plain"
    asked = resolve(PROFILE, ("gguf",), Wishes(rounding="compensated"))
    with pytest.raises(UnsupportedError, match="encoder"):
        fit_task(asked, "encoder")
    with pytest.raises(ConfigError, match="'up' is not one of"):
        resolve(PROFILE, ("gguf",), Wishes(rounding="up"))


@pytest.mark.parametrize(
    ("targets", "wishes", "said"),
    [
        (("gguf",), {}, "several targets the same weights, and one was named"),
        (("gguf", "onnx"), {"grids": ("q4_0",)}, "takes the grids that all targets hold"),
        (("gguf", "onnx"), {"budget": "10m"}, "--common-grid gives all targets the same weights"),
    ],
)
def test_what_a_common_grid_cannot_be_had_with(targets: tuple[str, ...], wishes: Wishes, said: str) -> None:
    asked: Wishes = {**wishes, "common_grid": True}
    with pytest.raises(ConfigError, match=said) as caught:
        resolve(PROFILE, targets, asked)
    assert caught.value.hint
    assert resolve(PROFILE, ("gguf", "onnx"), Wishes(common_grid=True)).common_grid
