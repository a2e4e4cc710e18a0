"""Runs, steps, events and executions in the store. On SQLite and PostgreSQL."""

import asyncio
import time
from dataclasses import replace

import pytest
from troupe.v1 import training_pb2
from troupe_orchestrator.store import runs as store
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.executions import StoredExecution, find_execution, index_executions
from troupe_orchestrator.store.runs import (
    TRANSITIONS,
    BatchRecord,
    IllegalTransitionError,
    RunRecord,
    RunState,
    StepRecord,
    StepState,
)
from troupe_orchestrator.training.events import EventLog


async def add_run(database: Database, run_id: str = "run-1") -> None:
    record = RunRecord(run_id, RunState.RUNNING, "", "config", 3, "/nowhere", time.time(), None)
    await store.create_run(database, record, {})


def step(number: int = 1) -> StepRecord:
    return StepRecord("run-1", number, StepState.ROLLING, ("t1", "t2"), {"seed": 1}, {"p": "a:0"})


async def test_a_step_goes_through_its_states_in_order_and_keeps_what_each_established(database: Database) -> None:
    await add_run(database)
    record = step()
    await store.begin_step(database, record)
    batch = BatchRecord("p", 1, "00", "file", 2, {"learningRate": 0.1})
    record = replace(record, batches=(batch,), metrics={"success": 0.5})
    for state in (StepState.SEALED, StepState.TRAINED, StepState.SYNCED, StepState.COMMITTED):
        await store.advance_step(database, record, state)
    assert await store.last_step(database, "run-1") == replace(record, state=StepState.COMMITTED)
    assert await store.committed_steps(database, "run-1") == 1


@pytest.mark.parametrize("target", [state for state in StepState if state is not StepState.SEALED])
async def test_a_rolling_step_can_only_be_sealed(database: Database, target: StepState) -> None:
    await add_run(database)
    await store.begin_step(database, step())
    with pytest.raises(IllegalTransitionError, match="cannot go from rolling"):
        await store.advance_step(database, step(), target)


async def test_a_step_begins_only_after_the_one_before_is_committed(database: Database) -> None:
    await add_run(database)
    await store.begin_step(database, step())
    with pytest.raises(IllegalTransitionError, match="step 1 is rolling"):
        await store.begin_step(database, step(2))


def test_the_table_of_transitions_is_one_path() -> None:
    state, path = None, []
    while (state := TRANSITIONS[state]) is not None:
        path.append(state)
    assert path == list(StepState)


async def test_events_of_a_transition_are_stored_with_it_or_not_at_all(database: Database) -> None:
    await add_run(database)
    await store.begin_step(database, step())
    events = await EventLog.open(database, "run-1")
    prepared = events.prepare(1, training_pb2.StepCommitted(stage=1))
    with pytest.raises(IllegalTransitionError):
        await store.advance_step(database, step(), StepState.COMMITTED, [prepared])
    assert await store.read_events(database, "run-1", 0) == []


async def test_a_watcher_that_reconnects_gets_the_events_it_missed(database: Database) -> None:
    await add_run(database)
    events = await EventLog.open(database, "run-1")
    for number in range(3):
        await events.append(number, training_pb2.Condition(reason=f"R{number}"))
    await events.end()
    seen = [event.condition.reason async for event in events.watch(after=1)]
    assert seen == ["R1", "R2"]


async def test_a_watcher_sees_events_as_they_happen_and_ends_with_the_run(database: Database) -> None:
    await add_run(database)
    events = await EventLog.open(database, "run-1")
    seen: list[int] = []

    async def watch() -> None:
        seen.extend([event.event_id async for event in events.watch(after=0)])

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0.05)
    await events.append(1, training_pb2.Condition(reason="A"))
    await asyncio.sleep(0.05)
    await events.append(1, training_pb2.Condition(reason="B"))
    await events.end()
    await asyncio.wait_for(watching, 5)
    assert seen == [1, 2]


async def test_drops_are_on_record_with_the_seal_of_their_step_or_not_at_all(database: Database) -> None:
    await add_run(database)
    drop = store.DropRecord("t1", 2, True, "engine down")
    with pytest.raises(store.IllegalTransitionError):
        await store.advance_step(database, step(1), StepState.SEALED, drops=[drop])
    assert await store.list_drops(database, "run-1") == []
    await store.begin_step(database, step(1))
    await store.advance_step(database, step(1), StepState.SEALED, drops=[replace(drop, count=1, quarantined=False)])
    assert await store.quarantined_tasks(database, "run-1") == frozenset()
    await store.advance_step(database, step(1), StepState.TRAINED, drops=[drop])
    assert await store.list_drops(database, "run-1") == [drop]
    assert await store.quarantined_tasks(database, "run-1") == {"t1"}


async def test_an_execution_is_found_by_a_prefix_of_its_id(database: Database) -> None:
    await index_executions(database, "run-1", 4, "file", ["abc123def", "abc999aaa"])
    assert await find_execution(database, "abc1") == [StoredExecution("abc123def", "run-1", 4, "file", False)]
    assert len(await find_execution(database, "abc")) == 2
