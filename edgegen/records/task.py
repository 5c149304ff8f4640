"""A task for few-shot distillation: how a teacher is asked for more examples, and which it may keep. `prompts.toml`."""

from __future__ import annotations

from edgegen.records.base import Record


class Filters(Record, frozen=True):
    """What an example needs to be used. `[filters]`"""

    min_confidence: float = -1.5
    """Mean log-probability of its answer's tokens, nats; with `write` the log-probability of its answer among all."""
    asks: int = 3
    """How often the teacher is asked again for the answer, each time shown other seeds."""
    min_agreement: float = 0.6
    """Share of those answers that must be the same."""
    max_similarity: float = 0.8
    """Jaccard similarity of word 3-grams to a seed or another example, at most."""
    max_share: float = 2.0
    """Of one answer, times its even share; for tasks with a list of answers."""


class Task(Record, frozen=True):
    """One task."""

    schema: int
    name: str
    instruction: str = ""
    """What the teacher is told first."""
    format: str = "Request: {prompt}\nAnswer: {answer}"
    """How an example is shown."""
    write: str = ""
    """How an example is shown where the teacher is given the answer and writes a request to it, like
    `Answer: {answer}\\nRequest: {prompt}`; needs `answers`, each of which has its turn. Empty: it writes a request and
    then its answer, as in `format`."""
    shots: int = 6
    """Seeds that are shown in each prompt; 0 goes with `write` and `study_steps`."""
    synthetic: int = 200
    """Examples that are wanted; 0: none, and the student learns the real ones alone, to see what the others buy."""
    tries: int = 2000
    """Most that the teacher is asked for."""
    temperature: float = 0.9
    top_p: float = 0.95
    max_new_tokens: int = 64
    answers: tuple[str, ...] = ()
    """All answers that there are; empty: any."""
    pattern: str = ""
    """That an answer must match as a whole."""
    json: bool = False
    """An answer must be a JSON object."""
    required: tuple[str, ...] = ()
    """Keys that the object must have."""
    study_steps: int = 0
    """Steps that the teacher itself first learns the seeds, as it will write them, for models that do not follow
    examples that they are shown; 0: it is used as it is."""
    synthetic_weight: float = 0.5
    """How much a synthetic example counts against a real one."""
    last_steps: int = 10
    """Short fine-tune on the validation split at the end; 0: none."""
    filters: Filters = Filters()
    prompt: str = ""
    """Name and version of the prompt that was chosen for it with `edgegen prompt use`."""


class SyntheticReport(Record, frozen=True):
    """What a teacher gave. `synthetic.json`."""

    schema: int
    task: str
    version: str
    """Of the task's text, twelve digits."""
    teacher: str
    seeds: int
    asked: int
    kept: int
    dropped: dict[str, int]
    """Reason → examples."""
    counts: dict[str, int]
    """Answer → examples; the ten most common."""
    mean_confidence: float | None
    mean_agreement: float | None
    distinct2: float | None
    """Distinct pairs of words over pairs, of all prompts that were kept."""
    prompt: str = ""
    """As in the task."""
    notes: tuple[str, ...] = ()
