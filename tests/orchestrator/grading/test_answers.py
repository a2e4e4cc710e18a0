"""Final answers are read off the end of a text, in the format that is due."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from troupe_orchestrator.grading.answers import boxed, delivery, final_answer, solution


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"\boxed{5} or \boxed{7}, no, \boxed{5}", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"an open { and then \boxed{5}", "5"),
        (r"\boxed{5} and, cut off, \boxed{7", "5"),
        (r"a line break \boxed{a\\}", "a\\\\"),
        (r"\fbox{12}", "12"),
        (r"\boxed{}", None),
        (r"\boxed{5", None),
        ("5", None),
    ],
)
def test_the_last_box_that_closes_counts(text: str, value: str | None) -> None:
    assert boxed(text) == value


@given(st.lists(st.integers(), min_size=1, max_size=8))
def test_of_repeated_boxes_the_last_wins_although_its_value_stood_before(values: list[int]) -> None:
    text = " ".join(rf"\boxed{{{value}}}" for value in values)
    assert boxed(text) == str(values[-1])


def test_last_delivery_and_solution_count_and_empty_ones_are_none() -> None:
    assert delivery("<delivery>a</delivery> <delivery> b </delivery>") == "b"
    assert delivery("<delivery> </delivery>") is None
    assert solution("<solution>a = 1</solution><solution>\n```python\nb = 2\n```\n</solution>") == "b = 2"
    assert solution("<solution>\n</solution>") is None


def test_an_answer_without_its_format_is_bare() -> None:
    boxed_answer = final_answer(r"<delivery>\boxed{4}</delivery>", "math")
    delivered = final_answer("I think <delivery>4</delivery>", "math")
    bare = final_answer(" 4\n", "math")
    assert boxed_answer is not None
    assert delivered is not None
    assert bare is not None
    assert (boxed_answer.form, delivered.form, bare.form) == ("boxed", "delivery", "bare")
    assert (boxed_answer.formatted, delivered.formatted, bare.formatted) == (True, False, False)
    assert final_answer("two\nlines", "math") is None
    assert final_answer("", "math") is None


def test_a_program_is_read_from_solution_then_fence_then_whole_text() -> None:
    for text, form in [
        ("<solution>print(1)</solution>", "solution"),
        ("Here:\n```python\nprint(1)\n```\n", "bare"),
        ("print(1)\n", "bare"),
    ]:
        answer = final_answer(text, "code")
        assert answer is not None
        assert (answer.text, answer.form) == ("print(1)", form)
    assert final_answer(" \n", "code") is None


@pytest.mark.parametrize("piece", [r"\boxed{", "<delivery>", "<solution>", "```\n", "{", "}"])
def test_text_full_of_what_never_closes_is_read_in_linear_time(piece: str) -> None:
    begun = time.process_time()
    for task_type in ("math", "code"):
        final_answer(piece * 50_000, task_type)
    assert time.process_time() - begun < 2
