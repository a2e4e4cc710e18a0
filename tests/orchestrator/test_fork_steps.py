"""Which steps of a run can be forked, and the plan of a fork."""

from hypothesis import given
from hypothesis import strategies as st
from troupe_orchestrator.run_config import RunConfig, Trains
from troupe_orchestrator.training.fork import forkable_steps, plan_of, ranges
from troupe_orchestrator.training.record import Fork


def gone_after(checkpoints: set[int], kept: set[int], steps: int) -> dict[int, int | None]:
    """Each checkpoint to the first step after it whose batch is not kept."""
    return {each: next((step for step in range(each + 1, steps + 1) if step not in kept), None) for each in checkpoints}


def test_a_step_can_be_forked_where_a_checkpoint_and_all_batches_after_it_are_kept() -> None:
    assert forkable_steps(0, 6, gone_after({0, 4}, {1, 2, 5, 6}, 6)) == [0, 1, 2, 4, 5, 6]
    assert forkable_steps(0, 6, gone_after({4}, {1, 2, 5}, 6)) == [4, 5]
    assert forkable_steps(3, 5, gone_after({3}, {4, 5}, 5)) == [3, 4, 5]


def test_a_step_under_way_cannot_be_forked() -> None:
    assert forkable_steps(0, 2, {0: None}) == [0, 1, 2]
    assert forkable_steps(0, 2, {0: 3}) == [0, 1, 2]


def test_numbers_are_shown_as_ranges() -> None:
    assert ranges([]) == "none"
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"


@given(st.sets(st.integers(0, 12)), st.sets(st.integers(1, 12)))
def test_from_every_forkable_step_there_is_a_way_back_to_a_checkpoint(checkpoints: set[int], kept: set[int]) -> None:
    for step in forkable_steps(0, 12, gone_after(checkpoints, kept, 12)):
        reached = max(each for each in checkpoints if each <= step)
        assert all(number in kept for number in range(reached + 1, step + 1))


def config() -> RunConfig:
    return RunConfig.model_validate(
        {
            "dataset": {"train": "x"},
            "steps": 20,
            "stages": [{"train": "executor", "steps": 3}, {"train": "designer", "steps": 2}],
        }
    )


def fork(start: int, before: Trains | None) -> Fork:
    return Fork("parent", 4, start, before, start == 0, True, "", None)


def test_a_plan_that_is_continued_is_that_of_the_parent() -> None:
    assert plan_of(config(), fork(0, None), 5) == plan_of(config(), None, 5)


def test_a_plan_of_ones_own_begins_after_the_fork_with_the_numbers_of_its_own_stages() -> None:
    plan = plan_of(config(), fork(4, Trains.DESIGNER), 5)
    assert (plan.step, plan.stage, plan.step_in_stage, plan.trains) == (5, 1, 1, Trains.EXECUTOR)
    assert plan.resets_optimizer
    assert not plan_of(config(), fork(4, Trains.EXECUTOR), 5).resets_optimizer
