"""In which order tasks are drawn. Pure: the queue is a value, and the order of an epoch a function of (seed, epoch).

A dropped task goes to the end of its epoch; a quarantined one is no longer drawn. The queue after each step is part of the
step's committed state, so a resumed run draws what an undisturbed one would have drawn.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from typing import Any


@dataclass(frozen=True, slots=True)
class TaskQueue:
    """Where a run stands in its tasks."""

    seed: int
    epoch: int = 0
    position: int = 0
    """Tasks of the epoch's order that were drawn."""
    postponed: tuple[str, ...] = ()
    """Dropped in this epoch; drawn once more at its end."""

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "postponed": list(self.postponed)}

    @staticmethod
    def from_json(value: dict[str, Any]) -> "TaskQueue":
        return TaskQueue(**{**value, "postponed": tuple(value["postponed"])})


class NoTasksError(ValueError):
    """Every task of the data set is quarantined."""


def epoch_order(seed: int, epoch: int, task_ids: Collection[str]) -> list[str]:
    """The tasks of an epoch, shuffled: by a hash of (seed, epoch, id), so that the data set's order has no say."""
    return sorted(task_ids, key=lambda task_id: blake2b(f"{seed}\x1f{epoch}\x1f{task_id}".encode()).digest())


def draw(
    queue: TaskQueue, count: int, task_ids: Sequence[str], quarantined: Collection[str]
) -> tuple[list[str], TaskQueue]:
    """The next `count` distinct tasks (fewer where there are not so many), and the queue after them.

    Raises:
        NoTasksError: nothing is left to draw.
    """
    wanted = min(count, len(set(task_ids) - set(quarantined)))
    if wanted == 0:
        raise NoTasksError(f"all {len(task_ids)} tasks are quarantined; `troupe status` lists why")
    drawn: list[str] = []
    order = epoch_order(queue.seed, queue.epoch, task_ids)
    while len(drawn) < wanted:
        if queue.position < len(order):
            candidate = order[queue.position]
            queue = replace(queue, position=queue.position + 1)
            if candidate in drawn:
                # The step began in the epoch before: this epoch's turn of the task comes at its end.
                queue = postpone(queue, [candidate])
        elif queue.postponed:
            candidate = queue.postponed[0]
            queue = replace(queue, postponed=queue.postponed[1:])
        else:
            queue = TaskQueue(queue.seed, queue.epoch + 1)
            order = epoch_order(queue.seed, queue.epoch, task_ids)
            continue
        if candidate not in quarantined and candidate not in drawn:
            drawn.append(candidate)
    return drawn, queue


def postpone(queue: TaskQueue, dropped: Sequence[str]) -> TaskQueue:
    """Put dropped tasks at the end of the epoch."""
    return replace(queue, postponed=(*queue.postponed, *dropped))
