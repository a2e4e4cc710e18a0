"""Which steps of a run can be forked, and the plan of a fork."""

from hypothesis import given
from hypothesis import strategies as st
from troupe_orchestrator.run_config import RunConfig, Trains
from troupe_orchestrator.store.batches import BatchRecord
from troupe_orchestrator.store.runs import StepRecord, StepState
from troupe_orchestrator.training.fork import forkable_steps, plan_of, ranges
from troupe_orchestrator.training.record import Fork


def steps(count: int, first: int = 1) -> list[StepRecord]:
    return [
        StepRecord("run", step, StepState.COMMITTED, (), {}, batches=(BatchRecord("p", step, "", f"b{step}", 1, {}),))
        for step in range(first, first + count)
    ]


def files(*numbers: int) -> set[str]:
    return {f"b{number}" for number in numbers}


def test_a_step_can_be_forked_where_a_checkpoint_and_all_batches_after_it_are_kept() -> None:
    assert forkable_steps(0, steps(6), {0, 4}, files(1, 2, 5, 6)) == [0, 1, 2, 4, 5, 6]
    assert forkable_steps(0, steps(6), {4}, files(1, 2, 5)) == [4, 5]
    assert forkable_steps(3, steps(2, first=4), {3}, files(4, 5)) == [3, 4, 5]


def test_a_step_under_way_cannot_be_forked() -> None:
    rolling = StepRecord("run", 3, StepState.SEALED, (), {})
    assert forkable_steps(0, [*steps(2), rolling], {0}, files(1, 2)) == [0, 1, 2]


def test_numbers_are_shown_as_ranges() -> None:
    assert ranges([]) == "none"
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"


@given(st.sets(st.integers(0, 12)), st.sets(st.integers(1, 12)))
def test_from_every_forkable_step_there_is_a_way_back_to_a_checkpoint(checkpoints: set[int], kept: set[int]) -> None:
    for step in forkable_steps(0, steps(12), checkpoints, files(*kept)):
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
