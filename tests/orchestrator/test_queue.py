"""The task queue: order, epochs, drops and quarantine."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from troupe_orchestrator.training.queue import NoTasksError, TaskQueue, draw, epoch_order, postpone

TASKS = tuple(f"t{number}" for number in range(10))


def test_an_epoch_draws_every_task_once() -> None:
    first, queue = draw(TaskQueue(seed=1), 6, TASKS, ())
    second, _ = draw(queue, 4, TASKS, ())
    assert sorted(first + second) == sorted(TASKS)


def test_a_step_across_two_epochs_takes_no_task_from_the_second() -> None:
    queue, counts = TaskQueue(seed=4), dict.fromkeys(TASKS, 0)
    while queue.epoch < 3:
        drawn, queue = draw(queue, 7, TASKS, ())
        for task in drawn:
            counts[task] += 1
    assert max(counts.values()) - min(counts.values()) <= 1


def test_epochs_have_different_orders_and_one_seed_gives_one_order() -> None:
    assert epoch_order(1, 0, TASKS) == epoch_order(1, 0, tuple(reversed(TASKS)))
    assert epoch_order(1, 0, TASKS) != epoch_order(1, 1, TASKS)
    assert epoch_order(1, 0, TASKS) != epoch_order(2, 0, TASKS)


def test_a_dropped_task_comes_again_at_the_end_of_its_epoch() -> None:
    first, queue = draw(TaskQueue(seed=1), 5, TASKS, ())
    rest, queue = draw(postpone(queue, [first[0]]), 5, TASKS, ())
    assert first[0] not in rest
    again, _ = draw(queue, 1, TASKS, ())
    assert again == [first[0]]


def test_quarantined_tasks_are_never_drawn() -> None:
    drawn, _ = draw(TaskQueue(seed=3), 10, TASKS, {"t4", "t7"})
    assert set(drawn) == set(TASKS) - {"t4", "t7"}


def test_nothing_left_to_draw_is_an_error_that_says_so() -> None:
    with pytest.raises(NoTasksError, match="all 10 tasks are quarantined"):
        draw(TaskQueue(seed=0), 1, TASKS, TASKS)


def test_a_queue_survives_its_json() -> None:
    queue = TaskQueue(seed=5, epoch=2, position=3, postponed=("t1",))
    assert TaskQueue.from_json(queue.to_json()) == queue


@given(st.integers(0, 99), st.lists(st.integers(1, 10), min_size=1, max_size=12))
def test_draws_never_repeat_a_task_within_a_step(seed: int, counts: list[int]) -> None:
    queue = TaskQueue(seed)
    for count in counts:
        drawn, queue = draw(queue, count, TASKS, ())
        assert len(set(drawn)) == len(drawn) == count


@given(st.integers(0, 99), st.integers(1, 10))
def test_a_resumed_queue_draws_what_an_undisturbed_one_draws(seed: int, count: int) -> None:
    _, queue = draw(TaskQueue(seed), count, TASKS, ())
    assert draw(queue, count, TASKS, ()) == draw(TaskQueue.from_json(queue.to_json()), count, TASKS, ())
