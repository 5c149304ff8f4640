"""How answers of LiteRT-LM are judged against the artifact's own."""

import pytest

from edgegen.runtime.litertlm import Answer, Compared, longest_prompt
from edgegen.verify.litertlm import judge

OWN = ["one two", "three\0", "four", "five"]


@pytest.mark.parametrize(
    ("texts", "passed", "said"),
    [
        ((" one two", "three", "four ", "five\ufffd"), True, "gives 4 of 4 greedy answers"),
        (("one two", "three", "fourteen", ""), True, "gives 2 of 4"),
        (("one two", "other", "other", "other"), False, "gives 1 of 4"),
        (("one two", "three", "four", None), True, "1 prompts reach its model as other tokens"),
        ((None, None, None, None), False, "gives 0 of 4"),
    ],
)
def test_half_of_the_answers_have_to_be_the_same(texts: tuple[str | None, ...], passed: bool, said: str) -> None:
    answers = tuple(
        Answer(own=own, engine=text or "", is_given_alike=text is not None)
        for own, text in zip(OWN, texts, strict=True)
    )
    found = judge(Compared(version="1", answers=answers))
    assert found.name == "litertlm" and found.passed is passed
    assert said in found.detail


def test_a_prompt_that_failed_is_another_answer_and_says_why() -> None:
    same = Answer(own="a", engine="a", is_given_alike=True)
    failed = Answer(own="b", engine="", is_given_alike=True)
    found = judge(Compared(version="1", answers=(same, failed), fault="Failed to run decode"))
    assert found.passed and found.detail.endswith("gives 1 of 2 greedy answers as LiteRT does; Failed to run decode")
    assert not judge(Compared(version="1", answers=(same, failed, failed), fault="Failed to run decode")).passed


@pytest.mark.parametrize(("context", "chunk", "longest"), [(1024, 128, 1024), (200, 128, 128), (100, 128, 100)])
def test_prompts_are_whole_chunks(context: int, chunk: int, longest: int) -> None:
    assert longest_prompt(context, chunk) == longest
