"""Whether an artifact's `.litertlm` file works in LiteRT-LM: it has to answer as the artifact itself does."""

from __future__ import annotations

import msgspec

from edgegen.records.artifact import Artifact
from edgegen.records.reference import Reference
from edgegen.records.report import Check
from edgegen.records.target import Target
from edgegen.runtime.litertlm import CONTAINER_FILE, Compared, is_installed
from edgegen.verify.process import run_worker
from edgegen.verify.worker import Request

_PROMPTS = 8

NOT_RUN = f"{CONTAINER_FILE} was not run: pip install 'edgegen[litert-lm]'"


def has_container(artifact: Artifact) -> bool:
    """Whether there is such a file to judge."""
    return any(file.path == CONTAINER_FILE for file in artifact.files)


def judge_container(
    request: Request, reference: Reference, target: Target
) -> tuple[tuple[Check, ...], tuple[str, ...]]:
    """Run the file in a fresh process, beside the artifact itself.

    Args:
        request: names the artifact, its runtime and how many tokens an answer has.

    Returns:
        The check, or a note that says why there is none.
    """
    if not is_installed():
        return (), (NOT_RUN,)
    prompts = tuple(prompt.prompt for prompt in reference.prompts[:_PROMPTS])
    result = run_worker(msgspec.structs.replace(request, what="litertlm", prompts=prompts), target)
    if result.compared is None:
        return (_check(False, result.error),), ()
    if not result.compared.answers:
        return (), (f"{CONTAINER_FILE} was not run: no held-out prompt leaves room for an answer.",)
    return (judge(result.compared),), ()


def judge(found: Compared) -> Check:
    """Whether the engine's answers are the artifact's own.

    It brings its own build of the same kernels, and activations are rounded to int8, so that close calls may fall the
    other way: half of the answers have to be the same to the end. One that the engine could not finish is not; it
    cannot write bytes that are no text.
    """
    wanted = len(found.answers)
    same = sum(each.is_given_alike and _bare(each.engine) == _bare(each.own) for each in found.answers)
    said = f"LiteRT-LM {found.version} gives {same} of {wanted} greedy answers as LiteRT does"
    other = sum(not each.is_given_alike for each in found.answers)
    if other:
        said += f"; {other} prompts reach its model as other tokens"
    if found.fault:
        said += f"; {found.fault}"
    return _check(2 * same >= wanted, said)


def _bare(text: str) -> str:
    """What two streams of the same tokens have in common: the first space and the last character may be lost, and a
    text ends at a zero byte on its way out of the engine."""
    return text.partition("\0")[0].strip().rstrip("\ufffd").strip()


def _check(passed: bool, detail: str) -> Check:
    return Check(name="litertlm", limit=None, measured=None, predicted=None, unit="", passed=passed, detail=detail)
