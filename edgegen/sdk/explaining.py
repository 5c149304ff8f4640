"""Why a model answers what it answers: `edgegen.explain(model, prompt=…, against=…)`."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Sequence
from pathlib import Path

from edgegen.common.codec import save_json
from edgegen.common.files import building, require_place
from edgegen.errors import ConfigError, UnsupportedError
from edgegen.evaluate.explain import METHODS, explain_side, greedy_answer, rank_agreement, words_of
from edgegen.evaluate.heatmap import PICTURE, draw_explanation
from edgegen.evaluate.scorer import CheckpointScorer
from edgegen.records.explanation import EXPLANATION_FILE, Explained, Explanation, Method
from edgegen.sdk.judging import open_scorer

Told = Callable[[int, int, str], None]


def explain(
    model: str,
    *,
    prompt: str,
    against: str | None = None,
    answer: str | None = None,
    methods: Sequence[str] = (),
    replacements: dict[str, str] | None = None,
    max_tokens: int = 64,
    out: str | Path | None = None,
    target: str = "",
    runtime: str = "",
    told: Told | None = None,
) -> Explanation:
    """Which words an answer rests on, and which change it; of one model or of two side by side.

    Args:
        model: a checkpoint, or what `compress` wrote.
        against: another to put beside it, as the compressed one; both are asked about the same answer.
        answer: what is explained; None: the model's greedy answer.
        methods: occlusion, ablation, integrated-gradients; empty: occlusion, and integrated gradients of a checkpoint.
        replacements: word → another to try in its place.
        out: folder for explanation.json and the picture; None: nothing is written.
        target, runtime: of an artifact.

    Raises:
        ConfigError, UnsupportedError, DeviceError, NetworkError: see `edgegen.errors`.
    """
    for method in methods:
        if method not in METHODS:
            raise ConfigError(f"--method {method!r} is unknown", hint="Known: " + ", ".join(METHODS) + ".")
    if max_tokens < 1:
        raise ConfigError(f"--max-tokens must be at least 1, not {max_tokens}")
    place = None if out is None else Path(out).expanduser()
    if place is not None:
        require_place(place, mark=EXPLANATION_FILE, what="explanation")
    spans = words_of(prompt)
    asked = {word.casefold(): put for word, put in (replacements or {}).items()}
    notes: list[str] = []
    with contextlib.ExitStack() as stack:
        # --target and --runtime are the artifact's, which is the second where there are two.
        scorers = [open_scorer(model, target="" if against else target, runtime="" if against else runtime)]
        stack.callback(scorers[0].close)
        if against is not None:
            scorers.append(open_scorer(against, target=target, runtime=runtime))
            stack.callback(scorers[1].close)
        chosen: list[Method] = [method for method in METHODS if method in methods]
        if not chosen:
            some = any(isinstance(scorer, CheckpointScorer) for scorer in scorers)
            chosen = ["occlusion", "integrated-gradients"] if some else ["occlusion"]
        left_out = [method for method in chosen if method != "occlusion"]
        for scorer in scorers:
            if left_out and not isinstance(scorer, CheckpointScorer):
                if methods and len(scorers) == 1:
                    raise UnsupportedError(
                        f"{', '.join(left_out)} cannot be had of an artifact in {scorer.judged.runtime}",
                        hint="Use --method occlusion, or explain the checkpoint.",
                    )
                notes.append(f"{', '.join(left_out)}: of the checkpoint only; a runtime gives no gradients")
        if answer is None:
            answer = greedy_answer(scorers[0], prompt, max_tokens=max_tokens)
            if not answer.strip():
                raise ConfigError(f"{model}: answers nothing to this prompt", hint="Say what to explain with --answer.")
        sides: list[Explained] = [
            explain_side(
                scorer,
                prompt,
                answer,
                methods=chosen,
                replacements=asked,
                max_tokens=max_tokens,
                told=told,
            )
            for scorer in scorers
        ]
    for word in asked:
        if all(not edit.put for side in sides for edit in side.edits if edit.removed.casefold().startswith(word)):
            notes.append(f"{word!r} is no word of the prompt, so it was not replaced")
    explanation = Explanation(
        schema=1,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        prompt=prompt,
        words=tuple(prompt[start:end] for start, end in spans),
        answer=answer,
        model=sides[0],
        against=sides[1] if len(sides) > 1 else None,
        agreement=_agreement(sides),
        notes=tuple(notes),
    )
    if place is not None:
        with building(place, mark=EXPLANATION_FILE, what="explanation") as folder:
            save_json(folder / EXPLANATION_FILE, explanation)
            draw_explanation(explanation, folder / PICTURE)
    return explanation


def _agreement(sides: Sequence[Explained]) -> float | None:
    found = [a.scores for side in sides for a in side.attributions if a.method == "occlusion"]
    return rank_agreement(*found) if len(found) == 2 else None
