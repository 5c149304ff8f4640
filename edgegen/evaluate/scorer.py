"""One way to ask any model: a torch checkpoint and an artifact in its own runtime answer the same calls.

Both are `runtime.base.Session`s, so drawing tokens, stopping and checking are one code; what differs is whose logits
they are. Text becomes ids by the tokenizer that lies in the model's own folder, so an artifact with a trimmed
vocabulary is judged with that.

T tokens, V vocabulary entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from edgegen.common.codec import digest_record, load_json
from edgegen.errors import ConfigError
from edgegen.modeling.checkpoint import Checkpoint
from edgegen.modeling.load import check_model, empty_model, find_model, open_model, open_tokenizer
from edgegen.modeling.summary import summarize
from edgegen.records.artifact import Artifact
from edgegen.records.evaluation import Judged
from edgegen.runtime.base import Logits, Session
from edgegen.runtime.checks import settings_here
from edgegen.runtime.registry import runtime_for
from edgegen.runtime.sampling import GREEDY, Sampling
from edgegen.runtime.text import Text


class Scorer(Protocol):
    """A model that can be judged.

    Attributes:
        judged: what it is, for the record.
        tokenizer: transformers' object of its own tokenizer.
        eos_ids: where answers end.
        bos_id: what a text without anything before it begins with; None: nothing.
        session: it, in its runtime.
        context_tokens: longest sequence.
    """

    judged: Judged
    tokenizer: Any
    eos_ids: tuple[int, ...]
    bos_id: int | None
    session: Session

    @property
    def context_tokens(self) -> int: ...

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, with the special tokens that the model expects before it."""
        ...

    def close(self) -> None: ...


class TorchSession(Session):
    """A checkpoint in torch, with a key-value cache."""

    def __init__(self, model: Any, context_tokens: int) -> None:
        self._model, self._cache = model, None
        self.vocab_size = int(model.get_output_embeddings().weight.shape[0])
        self.context_tokens = context_tokens

    def _prefill(self, ids: list[int]) -> Logits:
        return self._run_on(ids, None)

    def _decode(self, token: int, position: int) -> Logits:
        return self._run_on([token], self._cache)

    def _run_on(self, ids: list[int], cache: Any) -> Logits:
        with torch.inference_mode():
            said = self._model(torch.tensor([ids]), past_key_values=cache, use_cache=True)
        self._cache = said.past_key_values
        result: Logits = said.logits[0, -1].float().numpy()
        return result

    def _score(self, ids: list[int]) -> Logits:
        self._cache = None
        with torch.inference_mode():
            result: Logits = self._model(torch.tensor([ids]), use_cache=False).logits[0].float().numpy()
        return result

    def _close(self) -> None:
        self._model = self._cache = None


class CheckpointScorer:
    """A checkpoint's folder or hub id.

    Attributes:
        model: transformers' object.
    """

    def __init__(self, source: str, *, eos_ids: Sequence[int] | None = None) -> None:
        """Find, check and open it.

        Args:
            eos_ids: where answers end; None: the tokenizer's end of text.

        Raises:
            ConfigError, UnsupportedError, NetworkError, DeviceError: whatever is wrong with it.
        """
        ref = find_model(source)
        folder = Path(ref.path)
        checkpoint, empty = Checkpoint(folder), empty_model(ref)
        self.tokenizer = open_tokenizer(folder)
        check_model(ref, empty, checkpoint, self.tokenizer)
        summary = summarize(empty, checkpoint)
        if summary.task != "causal":
            raise ConfigError(f"{source}: an encoder, which writes nothing", hint="`edgegen verify` judges encoders.")
        self.model = open_model(ref, parameters=summary.parameters)
        self.session: Session = TorchSession(self.model, summary.context_tokens)
        end = self.tokenizer.eos_token_id
        self.eos_ids = tuple(eos_ids) if eos_ids is not None else (() if end is None else (int(end),))
        self.bos_id: int | None = self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else end
        self.judged = Judged(
            source=source,
            kind="checkpoint",
            runtime="torch",
            version=str(torch.__version__),
            digest=ref.digest,
            parameters=summary.parameters,
        )

    @property
    def context_tokens(self) -> int:
        """Longest sequence."""
        return self.session.context_tokens

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, with the special tokens that the model expects before it."""
        ids = [int(i) for i in self.tokenizer.encode(text)]
        return ids[:-1] if len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id else ids

    def close(self) -> None:
        """Free the model."""
        self.session.close()

    def __enter__(self) -> CheckpointScorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ArtifactScorer:
    """An artifact, run by the runtime that its devices use."""

    def __init__(self, folder: Path, *, source: str = "", runtime: str = "") -> None:
        """Open it.

        Args:
            folder: with artifact.json.
            source: what the user called it.
            runtime: one that runs its target; empty: the first that is installed.

        Raises:
            ConfigError: no artifact there, a broken one, or one of an encoder.
            UnsupportedError: the runtime is not installed.
            DeviceError: the runtime refuses the model.
        """
        artifact = load_json(folder / "artifact.json", Artifact)
        if artifact.task == "encoder":
            raise ConfigError(f"{folder}: an encoder, which writes nothing", hint="`edgegen verify` judges encoders.")
        self._text = Text(folder)
        self.tokenizer = open_tokenizer(folder)
        self.eos_ids = artifact.eos_ids
        end = artifact.eos_ids[0] if artifact.eos_ids else None
        self.bos_id = artifact.bos_id if artifact.bos_id is not None else end
        found = runtime_for(artifact.target, runtime)
        self.session: Session = found.open(folder / artifact.model, settings_here(artifact.settings))
        self.judged = Judged(
            source=source or str(folder),
            kind="artifact",
            runtime=found.name,
            version=found.version(),
            digest=digest_record({file.path: file.digest for file in artifact.files}),
            parameters=artifact.parameters,
        )

    @property
    def context_tokens(self) -> int:
        """Longest sequence."""
        return self.session.context_tokens

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, with the special tokens that the model expects before it."""
        return self._text.encode(text)

    def close(self) -> None:
        """Free the model."""
        self.session.close()

    def __enter__(self) -> ArtifactScorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def log_probs(scorer: Scorer, ids: Sequence[int]) -> NDArray[np.float64]:
    """(T - 1,) log-probability of each token after the first, nats; and nothing for a text of one token.

    Raises:
        ConfigError: more tokens than the context holds.
    """
    if len(ids) < 2:
        return np.zeros(0)
    logits = scorer.session.score(ids)[:-1]
    targets = np.asarray(ids[1:])
    found: NDArray[np.float64] = picked_log_probs(logits, targets)
    return found


def picked_log_probs(logits: Logits, targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """(T,) log-softmax of (T, V) logits at (T,) targets, in float64."""
    top = logits.max(axis=-1, keepdims=True)
    total = np.log(np.exp((logits - top).astype(np.float64)).sum(axis=-1))
    found: NDArray[np.float64] = logits[np.arange(len(targets)), targets] - top[:, 0].astype(np.float64) - total
    return found


def continuation(scorer: Scorer, before: Sequence[int], after: Sequence[int]) -> tuple[NDArray[np.float64], bool]:
    """(A,) log-probability of each token of `after` behind `before`, and whether greedy decoding would write it.

    Without `before` the model's own first token stands there; what a short context cannot hold is cut off its start,
    and of a longer `after` only the end is scored.
    """
    start = [*before] or ([scorer.bos_id] if scorer.bos_id is not None else [])
    ids = [*start, *after][-scorer.context_tokens :]
    count = min(len(after), len(ids) - 1)
    if count <= 0:
        return np.zeros(0), True
    logits = scorer.session.score(ids)[-count - 1 : -1]
    targets = np.asarray(ids[-count:])
    return picked_log_probs(logits, targets), bool((logits.argmax(axis=-1) == targets).all())


def text_continuation(scorer: Scorer, before: str, after: str) -> tuple[NDArray[np.float64], bool]:
    """The same for text. Both are cut into tokens together, as a reader would see them."""
    if not before:
        ids = scorer.encode(after)
        return continuation(scorer, [], [i for n, i in enumerate(ids) if n or i != scorer.bos_id])
    whole, start = scorer.encode(before + after), scorer.encode(before)
    return continuation(scorer, whole[: len(start)], whole[len(start) :])


def write(scorer: Scorer, ids: Sequence[int], *, max_tokens: int, sampling: Sampling = GREEDY) -> list[int]:
    """What the model continues ids with, without the stop token.

    Room for at least a token is made by cutting the prompt's start.
    """
    prompt = list(ids)[-max(1, scorer.context_tokens - max_tokens) :]
    return list(scorer.session.generate(prompt, max_tokens=max_tokens, stop_ids=scorer.eos_ids, sampling=sampling))


def decode(scorer: Scorer, ids: Sequence[int]) -> str:
    """Text of ids without special tokens."""
    return str(scorer.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
