"""The usual benchmarks, by lm-eval (EleutherAI's evaluation harness) with any of our models as its own.

lm-eval reads tasks, asks for log-likelihoods and continuations, and scores; the model answers through its `Scorer`, so
an artifact is judged in its runtime. Intervals are bootstraps over a task's questions, paired with the teacher's, where
a metric has a number for each question; else lm-eval's own standard error.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgegen.errors import ConfigError, EdgegenError, NetworkError, UnsupportedError
from edgegen.evaluate.scorer import Scorer, continuation, decode, picked_log_probs, write
from edgegen.evaluate.statistics import mean_columns, measure
from edgegen.records.evaluation import Better, Metric
from edgegen.records.report import Interval
from edgegen.runtime.sampling import Sampling

Told = Callable[[int, int, str], None]
_Z95 = 1.959963984540054
_DEFAULT_ANSWER_TOKENS = 256


def language_model(scorer: Scorer, told: Callable[[int, int], None] | None = None) -> Any:
    """A model as lm-eval wants one.

    Raises:
        UnsupportedError: lm-eval is not installed.
    """
    try:
        from lm_eval.api.model import TemplateLM
        from lm_eval.evaluator import simple_evaluate  # noqa: F401
    except (ImportError, TypeError) as error:  # the latter: newer than another library here allows
        raise UnsupportedError(
            f"--tasks needs lm-eval: {_line(error)}", hint="Install it with: pip install 'edgegen[evaluate]'"
        ) from error

    class ScorerLM(TemplateLM):
        """lm-eval's interface over a `Scorer`."""

        def __init__(self) -> None:
            super().__init__()
            self.tokenizer = scorer.tokenizer

        @property
        def eot_token_id(self) -> int:
            """What ends a text; the first token where nothing is said."""
            return scorer.eos_ids[0] if scorer.eos_ids else (scorer.bos_id or 0)

        @property
        def prefix_token_id(self) -> int:
            """What stands before a text without a context."""
            return scorer.bos_id if scorer.bos_id is not None else self.eot_token_id

        @property
        def tokenizer_name(self) -> str:
            """For lm-eval's caches."""
            return scorer.judged.source.replace("/", "__")

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            """Ids of a text; with the special tokens that the model expects, unless they are not wanted."""
            if add_special_tokens is False:
                return [int(i) for i in scorer.tokenizer.encode(string, add_special_tokens=False)]
            return scorer.encode(string)

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            """A conversation as text."""
            return str(
                scorer.tokenizer.apply_chat_template(
                    chat_history, tokenize=False, add_generation_prompt=add_generation_prompt
                )
            )

        def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
            found = []
            for number, (pair, before, after) in enumerate(requests):
                values, greedy = continuation(scorer, before, after)
                answer = (float(values.sum()), greedy)
                self.cache_hook.add_partial("loglikelihood", pair, answer)
                found.append(answer)
                _tell(number, requests)
            return found

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            """Each token once, with as much before it as the context holds."""
            found = []
            for number, request in enumerate(requests):
                (text,) = request.args
                found.append(_rolling(scorer, self.prefix_token_id, self.tok_encode(text, add_special_tokens=False)))
                _tell(number, requests)
            return found

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            """Continuations up to a stop text."""
            found = []
            for number, request in enumerate(requests):
                context, wishes = request.args
                found.append(_generated(scorer, self.tok_encode(context), dict(wishes)))
                _tell(number, requests)
            return found

    def _tell(number: int, requests: Sequence[Any]) -> None:
        if told:
            told(number + 1, len(requests))

    return ScorerLM()


def _rolling(scorer: Scorer, first: int, ids: list[int]) -> float:
    """Log-probability of a text, in windows of the context; later windows look back as far as it allows."""
    total, size = 0.0, scorer.context_tokens - 1
    for start in range(0, len(ids), size):
        part = ids[start : start + size]
        window = ([first, *ids][: start + len(part) + 1])[-(size + 1) :]
        logits = scorer.session.score(window)[-len(part) - 1 : -1]
        total += float(picked_log_probs(logits, np.asarray(part)).sum())
    return total


def _generated(scorer: Scorer, ids: list[int], wishes: dict[str, Any]) -> str:
    until = wishes.get("until") or []
    stops = [stop for stop in ([until] if isinstance(until, str) else list(until)) if stop]
    drawn = bool(wishes.get("do_sample")) and float(wishes.get("temperature") or 0) > 0
    sampling = Sampling(
        temperature=float(wishes["temperature"]) if drawn else 0.0,
        top_p=float(wishes.get("top_p") or 1.0) if drawn else 1.0,
        top_k=int(wishes.get("top_k") or 0) if drawn else 0,
        seed=0,
    )
    most = int(wishes.get("max_gen_toks") or wishes.get("max_tokens") or _DEFAULT_ANSWER_TOKENS)
    most = min(most, max(1, scorer.context_tokens // 2))
    text = decode(scorer, write(scorer, ids, max_tokens=most, sampling=sampling))
    for stop in stops:
        text = text.partition(stop)[0]
    return text


def run_tasks(
    model: Scorer,
    teacher: Scorer | None,
    tasks: Sequence[str],
    *,
    folder: str = "",
    shots: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    told: Told | None = None,
) -> tuple[list[Metric], list[str]]:
    """Run tasks.

    Args:
        folder: with further task files; empty: lm-eval's own only.
        shots: examples before each question; None: as a task says.
        limit: most questions of each task.

    Raises:
        ConfigError: an unknown task, or one that cannot be read.
        NetworkError: a task's data is not here and cannot be fetched.
        UnsupportedError: lm-eval is not installed.
    """
    sides = [model, *([teacher] if teacher else [])]
    found = [_evaluate(side, tasks, folder, shots, limit, seed, told) for side in sides]
    metrics: list[Metric] = []
    for task in found[0]["results"]:
        metrics += _of_task(task, found, seed)
    if limit is not None:
        return metrics, [f"lm-eval asked at most {limit} questions of each task: not comparable with published numbers"]
    return metrics, []


def _evaluate(
    scorer: Scorer,
    tasks: Sequence[str],
    folder: str,
    shots: int | None,
    limit: int | None,
    seed: int,
    told: Told | None,
) -> dict[str, Any]:
    words = f"tasks with {scorer.judged.source}"
    lm = language_model(scorer, (lambda done, of: told(done, of, words)) if told else None)
    with _quiet():
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager

        if folder and not Path(folder).expanduser().is_dir():
            raise ConfigError(f"{folder}: no such folder of tasks")
        manager = TaskManager(include_path=str(Path(folder).expanduser().resolve()) if folder else None)
        unknown = [name for name in tasks if name not in manager.all_tasks]
        if unknown:
            raise ConfigError(
                f"lm-eval knows no task {unknown[0]!r}", hint="`lm-eval ls tasks` lists them; --task-folder adds yours."
            )
        try:
            result: dict[str, Any] | None = simple_evaluate(
                model=lm,
                tasks=list(tasks),
                num_fewshot=shots,
                limit=limit,
                bootstrap_iters=0,
                log_samples=True,
                task_manager=manager,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
            )
        except EdgegenError:
            raise
        except (ConnectionError, OSError) as error:
            raise NetworkError(
                f"lm-eval cannot get the data of {', '.join(tasks)}: {_line(error)}",
                hint="Fetch it once with a network, or use a task on local files with --task-folder.",
            ) from error
        except Exception as error:  # a task's own code raises what it likes
            raise ConfigError(f"lm-eval cannot run {', '.join(tasks)}: {_line(error)}") from error
    assert result is not None, "only other processes than the first get none"
    return result


def _of_task(task: str, found: list[dict[str, Any]], seed: int) -> list[Metric]:
    metrics: list[Metric] = []
    for key, value in found[0]["results"][task].items():
        name, _, kind = key.partition(",")
        if "stderr" in name or not kind or not isinstance(value, int | float):
            continue
        higher = found[0].get("higher_is_better", {}).get(task, {}).get(name, True)
        better: Better = "neither" if higher is None else "higher" if higher else "lower"
        label = f"{task}/{name}" + (f"/{kind}" if kind != "none" else "")
        each = [_each(side, task, name, kind) for side in found]
        mean = None if each[0] is None else float(np.mean(each[0]))
        if mean is not None and abs(mean - value) < 1e-6 and all(side is not None for side in each):
            metrics.append(measure(label, "tasks", better, *[mean_columns(side or []) for side in each], seed=seed))
            continue
        count = int(found[0].get("n-samples", {}).get(task, {}).get("effective", 0))
        sides = [_stated(side["results"][task], name, kind) for side in found]
        metrics.append(
            Metric(
                label,
                "tasks",
                better,
                count,
                sides[0],
                sides[1] if len(sides) > 1 else None,
                note="over all questions at once, with lm-eval's own error where it has one; not paired",
            )
        )
    return metrics


def _each(result: dict[str, Any], task: str, name: str, kind: str) -> list[float] | None:
    """A metric's number for each question, in their order; None where it has none."""
    samples = [s for s in result.get("samples", {}).get(task, []) if s.get("filter", "none") == kind]
    values = [sample.get(name) for sample in sorted(samples, key=lambda sample: int(sample["doc_id"]))]
    if not values or not all(isinstance(value, int | float) for value in values):
        return None
    return [float(value) for value in values if value is not None]


def _stated(results: dict[str, Any], name: str, kind: str) -> Interval | None:
    value, error = results.get(f"{name},{kind}"), results.get(f"{name}_stderr,{kind}")
    if not isinstance(value, int | float):
        return None
    width = _Z95 * float(error) if isinstance(error, int | float) else 0.0
    return Interval(float(value), float(value) - width, float(value) + width)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep lm-eval's and datasets' talk off the terminal."""
    import datasets

    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, datasets.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
