"""What training a model took and gave. `training.json` in the trained model's folder."""

from __future__ import annotations

from edgegen.records.base import Record

TRAINING_FILE = "training.json"


class Measured(Record, frozen=True):
    """Losses after a step, nats per counted token."""

    step: int
    train: float
    """Mean since the measurement before."""
    heldout: float | None = None


class Training(Record, frozen=True):
    """One run."""

    schema: int
    method: str
    """full, lora, rslora, dora, qlora, prompt-tuning, distill, few-shot, on-policy or heal."""
    base: str
    """The model that it starts from, as it was named."""
    base_digest: str
    data: str
    data_digest: str
    created: str
    seed: int
    steps: int
    tokens: int
    """Counted tokens that were learnt from, with repetitions."""
    trained_parameters: int
    parameters: int
    heldout_before: float | None
    heldout_after: float | None
    best_step: int
    losses: tuple[Measured, ...]
    seconds: float
    tokens_per_s: float
    processes: int = 1
    device: str = "cpu"
    stopped: str = ""
    """Why before its last step: `early stop`, `worse`, `time`; empty: it ran to its end."""
    resumed: int = 0
    """How often it was taken up again."""
    settings: dict[str, str] = {}
    teacher: str = ""
    teacher_digest: str = ""
    notes: tuple[str, ...] = ()
    lineage: str = ""
    identity: str = ""
    """Digest of everything that decides the result."""
    model_digest: str = ""
    """Of the model that came out: configuration, tokenizer and weights."""
    by: str = ""
    """Who ran it."""
