"""Drops by the length of the question: a bias towards short ones is seen."""

from hypothesis import given
from hypothesis import strategies as st
from troupe_orchestrator.training.drop_rates import drop_rates


def test_each_bucket_that_had_tasks_has_its_share_of_drops() -> None:
    questions = {"a": "x" * 127, "b": "x" * 128, "c": "x" * 511, "d": "x" * 5000}
    assert drop_rates(questions, {"c", "d", "of another step"}) == {
        "drop_rate/prompt_lt_128": 0.0,
        "drop_rate/prompt_lt_512": 0.5,
        "drop_rate/prompt_ge_2048": 1.0,
    }


@given(st.dictionaries(st.text(min_size=1, max_size=3), st.integers(0, 4000), min_size=1))
def test_without_drops_every_rate_is_0_and_with_all_dropped_every_rate_is_1(lengths: dict[str, int]) -> None:
    questions = {task_id: "x" * length for task_id, length in lengths.items()}
    assert set(drop_rates(questions, set()).values()) == {0.0}
    assert set(drop_rates(questions, set(questions)).values()) == {1.0}
