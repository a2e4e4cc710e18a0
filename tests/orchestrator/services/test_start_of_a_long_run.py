"""What a run reads of its steps when it goes on, and a fork of its parent's: no more for more steps."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from orchestrated.models import right_unless_guessed
from orchestrated.world import Backends, math_task
from sqlalchemy import Engine, event
from troupe.v1 import policy_pb2, training_pb2

pytestmark = pytest.mark.asyncio(loop_scope="session")

TASKS = [math_task(f"task-{number}") for number in range(4)]
STEPS = 6


@contextmanager
def rows_read() -> Iterator[list[tuple[str, int]]]:
    """Each statement, and how many rows it gave; aiosqlite's cursors have them all at once."""
    read: list[tuple[str, int]] = []

    def executed(connection: Any, cursor: Any, statement: str, *_: object) -> None:
        read.append((" ".join(statement.split()), len(cursor._rows)))

    event.listen(Engine, "after_cursor_execute", executed)
    try:
        yield read
    finally:
        event.remove(Engine, "after_cursor_execute", executed)


async def test_a_run_that_goes_on_and_a_fork_read_one_step_however_many_there_are(
    open_world, stand_ins: Backends
) -> None:
    reached = asyncio.Event()

    async def stays(request: policy_pb2.GenerateRequest) -> str:
        if request.version.number == STEPS:
            reached.set()
            await asyncio.Event().wait()
        return right_unless_guessed(request)

    stand_ins.policy.reply = stays
    async with open_world(learner=True) as world:
        config = world.config(TASKS, steps=STEPS + 2, stages=[{"train": "both", "steps": STEPS + 2}])
        config += "checkpoint: {every: 5, keep: 2}\n"
        await world.training.CreateRun(training_pb2.CreateRunRequest(run_id="run", config=config))
        await asyncio.wait_for(reached.wait(), 60)
        reached.clear()
    with rows_read() as read:
        async with open_world(learner=True) as world:
            await asyncio.wait_for(reached.wait(), 60)
            await world.training.CancelRun(training_pb2.CancelRunRequest(run_id="run"))
            stand_ins.policy.reply = right_unless_guessed
            fork = training_pb2.ForkRunRequest(parent_run_id="run", step=STEPS, run_id="fork")
            await world.training.ForkRun(fork)
            await world.run_events("fork")
            assert (await world.get_run("fork")).state == training_pb2.RUN_STATE_SUCCEEDED
    of_steps = [(statement, rows) for statement, rows in read if "FROM steps" in statement]
    whole_batches = [(statement, rows) for statement, rows in read if "batches.optimization" in statement]
    assert max(rows for _, rows in of_steps) == 1, of_steps
    assert max(rows for _, rows in whole_batches) == 1, whole_batches
