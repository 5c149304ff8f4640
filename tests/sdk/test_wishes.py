"""Which limit on quality counts: KL of models that continue text, cosine similarity of encoders."""

import pytest

from edgegen.errors import ConfigError, UnsupportedError
from edgegen.sdk.wishes import MIN_COSINE, Wishes, fit_task, resolve

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
    assert resolve(PROFILE, ("gguf",), Wishes(budget=budget)).search_seconds == seconds


def test_without_a_time_budget_the_structure_stays() -> None:
    assert resolve(PROFILE, ("gguf",), Wishes()).search_seconds == 0


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        ({"budget": "soon"}, "--budget"),
        ({"budget": 0}, "must be above 0"),
        ({"budget": float("nan")}, "must be above 0"),
        ({"techniques": ("depth",)}, "needs time"),
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
        (("gguf", "onnx"), {"budget": "10m"}, "--common-grid keeps the structure"),
    ],
)
def test_what_a_common_grid_cannot_be_had_with(targets: tuple[str, ...], wishes: Wishes, said: str) -> None:
    asked: Wishes = {**wishes, "common_grid": True}
    with pytest.raises(ConfigError, match=said) as caught:
        resolve(PROFILE, targets, asked)
    assert caught.value.hint
    assert resolve(PROFILE, ("gguf", "onnx"), Wishes(common_grid=True)).common_grid
