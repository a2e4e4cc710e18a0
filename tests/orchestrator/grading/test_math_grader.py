"""Values are compared strictly and by type. No worker takes part."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from troupe_orchestrator.datasets.task import MathReference
from troupe_orchestrator.grading.math_grader import LibraryNeededError, is_correct, never_equal, no_library

CORRECT = [
    ("5", "5.0"),
    ("025", "25"),
    ("10,000", "10000"),
    ("10000", r"10{,}000"),
    ("10000", r"10,\!000"),
    ("-3", "−3"),
    (r"\frac{1}{2}", "0.5"),
    (r"\frac12", r"\dfrac{1}{2}"),
    ("0.5", r"\frac{1}{2}"),
    ("7", "$x = 7$"),
    ("k=1", "1"),
    ("7", r"\(7\)."),
    ("36", r"36\text{ cm}"),
    (r"90^\circ", "90"),
    (r"\$2.50", "2.5"),
    (r"50\%", "50"),
    (r"\text{Monday}", "monday"),
    (r"\text{(C)}", "C"),
    ("C", "(C)"),
    ("(1, 2)", r"\left(1,2\right)"),
    (r"[0,\infty)", r"[0, \infty)"),
    ("1,-2", "-2, 1"),
    ("1,-2", r"1 \text{ and } -2"),
    (r"\{1,2\}", r"\{2,1\}"),
    (r"\pm 1", r"1, -1"),
    (r"2516_8", r"2516_{8}"),
    (r"x \in [-2,7]", "[-2,7]"),
]

WRONG = [
    ("1000", "1001"),
    ("1000000.0", "1000001"),
    ("5", "5.0000001"),
    (r"\frac{1}{3}", "0.333333"),
    ("0.5", "0.54"),
    ("3.14", "3.1416"),
    ("5", "A"),
    ("A", "5"),
    ("C", "D"),
    ("5", "I do not know"),
    ("5", "the answer is 5"),
    ("5", ""),
    ("5", "5, 6"),
    ("1,2", "1"),
    ("1,2", "1,2,3"),
    ("1,1", "1,2"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", "[1,2]"),
    ("[0,1)", "[0,1]"),
    (r"\{1,2\}", "(1,2)"),
    (r"36\text{ cm}", r"36\text{ miles}"),
    ("2516_8", "2516"),
    ("2516", "2516_8"),
    (r"\text{CORRECT}", r"\text{INCORRECT}"),
    ("['2']", "2"),
    ("5", "9" * 3000),
    ("5", "1e999999999"),
    ("5", "(" * 500 + "5" + ")" * 500),
    ("5", "4=5"),
]


@pytest.mark.parametrize(("reference", "answer"), CORRECT)
def test_the_same_value_written_otherwise_is_correct(reference: str, answer: str) -> None:
    assert is_correct(MathReference(reference), answer, never_equal)


@pytest.mark.parametrize(("reference", "answer"), WRONG)
def test_another_value_or_another_kind_of_value_is_wrong(reference: str, answer: str) -> None:
    assert not is_correct(MathReference(reference), answer, never_equal)


def test_none_of_a_thousand_integers_accepts_its_neighbours() -> None:
    for number in range(1, 1001):
        for written in (f"{number}", f"{number}.0"):
            reference = MathReference(written)
            assert is_correct(reference, str(number), no_library)
            assert not is_correct(reference, str(number + 1), no_library)
            assert not is_correct(reference, str(number - 1), no_library)


@given(st.integers(), st.integers())
def test_integers_are_equal_only_to_themselves(one: int, other: int) -> None:
    assert is_correct(MathReference(str(one)), str(other), never_equal) == (one == other)


@given(st.lists(st.integers(-99, 99), min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_a_list_is_reached_in_any_order_and_in_no_other_way(values: list[int], random: object) -> None:
    reference = MathReference(tuple(str(value) for value in values))
    shuffled = sorted(values, key=lambda _: random.random())  # type: ignore[attr-defined]
    assert is_correct(reference, ", ".join(map(str, shuffled)), never_equal)
    assert not is_correct(reference, ", ".join(map(str, [*shuffled[:-1], 100])), never_equal)
    assert not is_correct(reference, ", ".join(map(str, shuffled[:-1])), never_equal)


def test_a_list_reference_with_one_item_is_that_item_and_not_its_repr() -> None:
    assert is_correct(MathReference(("2",)), "2", never_equal)
    assert not is_correct(MathReference(("2",)), "['2']", never_equal)


def test_several_answers_in_one_text_are_all_due() -> None:
    reference = MathReference((r"$69$,$84$",), multiple=True)
    assert is_correct(reference, "84, 69", never_equal)
    assert is_correct(reference, r"\{69, 84\}", never_equal)
    assert not is_correct(reference, "69", never_equal)
    thousands = MathReference(("2500,7500",), multiple=True)
    assert is_correct(thousands, "7,500 and 2,500", never_equal)
    pairs = MathReference((r"$(1,8,19), (2,7,13)$",), multiple=True)
    assert is_correct(pairs, "(2,7,13),(1,8,19)", never_equal)
    assert not is_correct(pairs, "(7,2,13),(1,8,19)", never_equal)


def test_tolerance_holds_for_decimals_only() -> None:
    assert is_correct(MathReference("1.6", tolerance=0.05), "1.58", never_equal)
    assert not is_correct(MathReference("1.6", tolerance=0.05), "1.7", never_equal)
    assert not is_correct(MathReference("300", tolerance=5.0), "301", never_equal)


def test_the_unit_of_the_question_may_be_named() -> None:
    reference = MathReference("12", unit="minutes")
    assert is_correct(reference, r"12 \text{ minutes}", never_equal)
    assert is_correct(reference, "12 minutes", never_equal)
    assert not is_correct(reference, "12 hours", never_equal)


def test_what_needs_algebra_is_handed_on() -> None:
    with pytest.raises(LibraryNeededError):
        is_correct(MathReference(r"\frac{\sqrt{2}}{2}"), r"\frac{1}{\sqrt{2}}", no_library)


def test_a_plain_number_costs_at_most_50_microseconds() -> None:
    reference = MathReference("3869")
    answers = [str(number) for number in range(5_000)]
    best = float("inf")
    for _ in range(5):
        begun = time.process_time()
        for answer in answers:
            is_correct(reference, answer, no_library)
        best = min(best, (time.process_time() - begun) / len(answers))
    assert best < 50e-6


@given(st.text(max_size=60), st.sampled_from(["5", "0.5", r"\text{even}", "C", "(1,2)", "1,2", r"\sqrt{2}", "x=1"]))
def test_any_text_gets_a_verdict(answer: str, reference: str) -> None:
    assert is_correct(MathReference(reference), answer, never_equal) in (True, False)
