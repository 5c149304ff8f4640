"""The measured price of a smaller vocabulary."""

from pathlib import Path

import pytest
import torch

from edgegen.modeling.forward import counted_log_probs
from edgegen.modeling.text import make_windows
from edgegen.modeling.trimming import count_domain_tokens, keep_all, measure_options
from edgegen.modeling.vocabulary import Vocabulary
from tests.modeling.opened import Opened, open_all, rows
from tests.tiny_models import make_tiny

SIZES = [384, 352, 320, 288]
EXAMPLES = rows(40)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return open_all(make_tiny("llama", tmp_path_factory.mktemp("m"), tied=False, padding=16))


def prices(opened: Opened, sizes: list[int] | None = None, **more: int) -> list[tuple[int, float, float, float]]:
    options = measure_options(
        opened.model, Path(opened.ref.path), opened.tokenizer, EXAMPLES, sizes or SIZES, max_tokens=300, **more
    )
    for option in options:
        assert option.kept is not None and len(option.kept) == option.choice.size
        assert option.choice.original_size == 416
    return [(o.choice.size, o.choice.kl, o.choice.lost_mass_fraction, o.choice.tokens_per_byte_ratio) for o in options]


def test_a_random_model_pays_more_for_each_token_that_goes(llama: Opened) -> None:
    found = prices(llama)
    assert [size for size, *_ in found] == SIZES
    for number in (1, 2, 3):
        column = [row[number] for row in found]
        assert column == sorted(column)
    assert all(kl > 0 for _, kl, *_ in found)
    assert found[-1][3] > 1.05, "fewer merges cut text finer"


def test_tokens_that_are_never_predicted_cost_nothing(tmp_path: Path) -> None:
    opened = open_all(make_tiny("llama", tmp_path / "m", tied=False, padding=16))
    used = count_domain_tokens(opened.tokenizer, EXAMPLES, 416)
    # A head that gives unused tokens no probability: unused rows point away from every state.
    head = opened.model.get_output_embeddings()
    bias = torch.zeros(416)
    bias[torch.from_numpy(used == 0)] = -200
    head.register_forward_hook(lambda m, inputs, output: output + bias)
    vocabulary = Vocabulary(Path(opened.ref.path) / "tokenizer.json")
    needed = set(vocabulary.always).union(*(vocabulary.ancestors(int(token)) for token in used.nonzero()[0]))
    (option,) = prices(opened, [len(needed)])
    assert option[1] == pytest.approx(0, abs=1e-6)
    assert option[2] == pytest.approx(0, abs=1e-6)
    assert option[3] == pytest.approx(1, abs=1e-9)


def test_lost_mass_is_what_the_dropped_tokens_had(llama: Opened) -> None:
    """Dropping the 16 padding rows only: the mean of -ln(1 - their mass), and no other split."""
    (option,) = prices(llama, [400])
    assert option[0] == 400 and option[3] == pytest.approx(1)
    windows = make_windows(llama.tokenizer, EXAMPLES, max_tokens=300, window_tokens=256)
    mass = counted_log_probs(llama.model, windows)[:, :400].exp().sum(1)
    assert option[1] == pytest.approx(float(-mass.log().mean()), rel=0.15)
    assert option[2] == pytest.approx(float((1 - mass).mean()), rel=0.15)


def test_windows_stay_inside_a_short_context(tmp_path: Path) -> None:
    opened = open_all(make_tiny("gpt2", tmp_path / "m", context=32))
    options = measure_options(
        opened.model, Path(opened.ref.path), opened.tokenizer, EXAMPLES, [320], max_tokens=200, window_tokens=32
    )
    assert options[0].choice.kl > 0


def test_keeping_everything_is_free() -> None:
    option = keep_all(416, "because")
    assert option.kept is None and option.choice.kl == 0 and option.choice.why == "because"
    assert option.choice.size == option.choice.original_size == 416
