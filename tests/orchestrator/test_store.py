"""The store: lease and fencing, step transitions, events, evals. On a real SQLite file."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from troupe.v1 import training_pb2
from troupe_orchestrator.store import runs as store
from troupe_orchestrator.store.database import Database, LeaseHeldError, LeaseLostError
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


def url(folder: Path) -> str:
    return f"sqlite+aiosqlite:///{folder}/troupe.db"


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = await Database.open(url(tmp_path), lease_seconds=5)
    yield database
    await database.close()


async def add_run(database: Database, run_id: str = "run-1") -> None:
    record = RunRecord(run_id, RunState.RUNNING, "", "config", 3, "/nowhere", time.time(), None)
    await store.create_run(database, record, {})


def step(number: int = 1) -> StepRecord:
    return StepRecord("run-1", number, StepState.ROLLING, ("t1", "t2"), {"seed": 1}, {"p": "a:0"})


async def test_a_second_orchestrator_on_the_same_store_is_refused_by_name(database: Database, tmp_path: Path) -> None:
    with pytest.raises(LeaseHeldError, match=r"is held by orchestrator .*; stop that one"):
        await Database.open(url(tmp_path), lease_seconds=5)


async def test_a_closed_store_can_be_taken_and_the_fence_grows(tmp_path: Path) -> None:
    first = await Database.open(url(tmp_path), lease_seconds=5)
    await first.close()
    second = await Database.open(url(tmp_path), lease_seconds=5)
    assert second.fence.store_id == first.fence.store_id
    assert second.fence.token == first.fence.token + 1
    await second.close()


async def test_a_lease_that_is_renewed_outlives_its_seconds(tmp_path: Path) -> None:
    owner = await Database.open(url(tmp_path), lease_seconds=0.6)
    await asyncio.sleep(1.2)
    with pytest.raises(LeaseHeldError):
        await Database.open(url(tmp_path), lease_seconds=5)
    await owner.close()


async def test_a_stale_orchestrator_can_write_nothing(tmp_path: Path) -> None:
    stale = await Database.open(url(tmp_path), lease_seconds=0.3)
    stale._renewal.cancel()  # as when its process was stopped for longer than the lease
    await asyncio.sleep(0.5)
    owner = await Database.open(url(tmp_path), lease_seconds=5)
    with pytest.raises(LeaseLostError):
        await add_run(stale)
    assert stale.lost.is_set()
    assert await store.get_run(owner, "run-1") is None
    await owner.close()


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


async def test_a_task_is_quarantined_after_its_last_drop(database: Database) -> None:
    await add_run(database)
    assert [await store.count_drop(database, "run-1", "t1", "engine down", 2) for _ in range(2)] == [False, True]
    assert await store.quarantined_tasks(database, "run-1") == {"t1"}


async def test_an_execution_is_found_by_a_prefix_of_its_id(database: Database) -> None:
    await index_executions(database, "run-1", 4, "file", ["abc123def", "abc999aaa"])
    assert await find_execution(database, "abc1") == [StoredExecution("abc123def", "run-1", 4, "file", False)]
    assert len(await find_execution(database, "abc")) == 2
