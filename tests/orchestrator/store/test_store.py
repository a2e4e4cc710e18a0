"""Runs, steps, events and executions in the store. On SQLite and PostgreSQL."""

import asyncio
from dataclasses import replace

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import IntegrityError
from troupe.v1 import training_pb2
from troupe_orchestrator.store import evals
from troupe_orchestrator.store.batches import (
    BatchRecord,
    batches_after,
    last_update,
    sealed_digests,
    trained_updates,
    updated_policies,
)
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.drops import DropRecord, list_drops, quarantined_tasks
from troupe_orchestrator.store.evals import EvalRecord, EvalState, ItemCounts, ItemRecord
from troupe_orchestrator.store.executions import (
    StoredExecution,
    TreeFile,
    find_execution,
    index_executions,
    tree_files,
)
from troupe_orchestrator.store.object_requests import ObjectRequest, list_requests, put_request
from troupe_orchestrator.store.run_events import read_events, write_events
from troupe_orchestrator.store.runs import RunRecord, RunState, create_run, get_run, set_run_state
from troupe_orchestrator.store.steps import (
    TRANSITIONS,
    IllegalTransitionError,
    StepRecord,
    StepState,
    advance_step,
    begin_step,
    committed_steps,
    last_step,
)
from troupe_orchestrator.store.summaries import list_summaries
from troupe_orchestrator.training.events import EventLog


async def add_run(database: Database, run_id: str = "run-1", created_at: float = 1.0) -> None:
    record = RunRecord(run_id, RunState.RUNNING, "", "config", 3, "/nowhere", created_at, None)
    await create_run(database, record, {})


def step(number: int = 1) -> StepRecord:
    return StepRecord("run-1", number, StepState.ROLLING, ("t1", "t2"), {"seed": 1}, {"p": "a:0"})


async def test_a_step_goes_through_its_states_in_order_and_keeps_what_each_established(database: Database) -> None:
    await add_run(database)
    record = step()
    await begin_step(database, record)
    batch = BatchRecord("p", 1, "00", "file", 2, {"learningRate": 0.1})
    record = replace(record, batches=(batch,), metrics={"success": 0.5})
    for state in (StepState.SEALED, StepState.TRAINED, StepState.SYNCED, StepState.COMMITTED):
        await advance_step(database, record, state)
    assert await last_step(database, "run-1") == replace(record, state=StepState.COMMITTED)
    assert await committed_steps(database, "run-1") == 1


@pytest.mark.parametrize("target", [state for state in StepState if state is not StepState.SEALED])
async def test_a_rolling_step_can_only_be_sealed(database: Database, target: StepState) -> None:
    await add_run(database)
    await begin_step(database, step())
    with pytest.raises(IllegalTransitionError, match="cannot go from rolling"):
        await advance_step(database, step(), target)


async def test_a_step_begins_only_after_the_one_before_is_committed(database: Database) -> None:
    await add_run(database)
    await begin_step(database, step())
    with pytest.raises(IllegalTransitionError, match="step 1 is rolling"):
        await begin_step(database, step(2))


def test_the_table_of_transitions_is_one_path() -> None:
    state, path = None, []
    while (state := TRANSITIONS[state]) is not None:
        path.append(state)
    assert path == list(StepState)


async def test_events_of_a_transition_are_stored_with_it_or_not_at_all(database: Database) -> None:
    await add_run(database)
    await begin_step(database, step())
    events = await EventLog.open(database, "run-1")
    with pytest.raises(IllegalTransitionError):
        async with events.storing(1, training_pb2.StepCommitted(stage=1)) as prepared:
            await advance_step(database, step(), StepState.COMMITTED, prepared)
    assert await read_events(database, "run-1", 0) == []


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
    drop = DropRecord("t1", 2, True, "engine down")
    with pytest.raises(IllegalTransitionError):
        await advance_step(database, step(1), StepState.SEALED, drops=[drop])
    assert await list_drops(database, "run-1") == []
    await begin_step(database, step(1))
    await advance_step(database, step(1), StepState.SEALED, drops=[replace(drop, count=1, quarantined=False)])
    assert await quarantined_tasks(database, "run-1") == frozenset()
    await advance_step(database, step(1), StepState.TRAINED, drops=[drop])
    assert await list_drops(database, "run-1") == [drop]
    assert await quarantined_tasks(database, "run-1") == {"t1"}


async def test_an_execution_is_found_by_a_prefix_of_its_id(database: Database) -> None:
    await index_executions(database, "run-1", 4, TreeFile("file", ["abc123def", "abc999aaa"], "d1"))
    assert await find_execution(database, "abc1") == [StoredExecution("abc123def", "run-1", 4, "file", False, "d1")]
    assert len(await find_execution(database, "abc")) == 2


async def test_a_tree_file_that_is_written_anew_has_its_new_digest(database: Database) -> None:
    for digest in ("d1", "d2"):
        await index_executions(database, "run-1", 4, TreeFile("file", ["abc123def"], digest))
    assert await tree_files(database, "run-1") == {"file": "d2"}


async def test_runs_are_listed_with_their_newest_step_and_disk_use_in_one_query_however_many(
    database: Database,
) -> None:
    for number in range(5):
        await add_run(database, f"run-{number}", created_at=float(number))
        await begin_step(database, replace(step(), run_id=f"run-{number}"))
    queries: list[str] = []
    engine = database._engine.sync_engine
    event.listen(engine, "before_cursor_execute", lambda *arguments: queries.append(arguments[2]))
    listed = await list_summaries(database, 3)
    assert len([query for query in queries if "FROM" in query]) == 1
    assert [(each.run.run_id, each.step, each.committed_steps) for each in listed] == [
        (f"run-{number}", 1, 0) for number in (4, 3, 2)
    ]
    last = listed[-1].run
    assert [each.run.run_id for each in await list_summaries(database, 3, (last.created_at, last.run_id))] == [
        "run-1",
        "run-0",
    ]


async def test_items_of_several_jobs_are_counted_in_one_query(database: Database) -> None:
    for job_id in ("one", "two"):
        record = EvalRecord(job_id, EvalState.RUNNING, "", b"", "", 3, (), {}, None, 1.0, None)
        await evals.create_job(database, record, (1, b""))
    items = [ItemRecord("q", sample, "", True, sample == 1, b"") for sample in range(3)]
    await evals.add_items(database, "one", items, None, (2, b""), 1.0)
    counted = await evals.count_items_of(database, ["one", "two"])
    assert counted == {"one": ItemCounts(3, 1), "two": ItemCounts(0, 0)}


async def test_a_learner_is_given_only_the_batches_that_it_lacks(database: Database) -> None:
    await add_run(database)
    for number in (1, 2, 3):
        batches = tuple(BatchRecord(policy, number, f"{policy}{number}", "file", 1, {}) for policy in "pq")
        record = replace(step(number), batches=batches if number != 2 else batches[:1])
        await begin_step(database, record)
        for state in (StepState.SEALED, StepState.TRAINED, StepState.SYNCED, StepState.COMMITTED)[
            : 4 if number < 3 else 1
        ]:
            await advance_step(database, record, state)
    assert await last_update(database, "run-1", "p") == 3
    assert await last_update(database, "run-1", "nobody") == 0
    assert [batch.digest for batch in await batches_after(database, "run-1", "p", 1)] == ["p2", "p3"]
    assert await sealed_digests(database, "run-1", "q") == ("q1", "q3")
    assert await trained_updates(database, "run-1") == {"p": 2, "q": 1}
    assert await updated_policies(database, "run-1", 2, 2) == {"p"}
    assert await updated_policies(database, "run-1", 1, 3) == {"p", "q"}


async def test_a_transaction_that_is_cancelled_midway_leaves_nothing_and_lets_the_next_one_in(
    database: Database,
) -> None:
    begun = asyncio.Event()

    async def write() -> None:
        async with database.writing() as connection:
            await write_events(connection, "run-1", [(1, b"event")])
            begun.set()
            if database.name.startswith("postgresql"):
                await connection.execute(text("SELECT pg_sleep(60)"))  # amid a statement
            await asyncio.sleep(60)

    writing = asyncio.create_task(write())
    await begun.wait()
    await asyncio.sleep(0.05)
    writing.cancel()
    await asyncio.wait([writing])
    assert writing.cancelled()
    async with asyncio.timeout(4):
        await add_run(database)
    assert await read_events(database, "run-1", 0) == []


async def test_reasons_in_the_words_of_others_are_stored_without_their_nul_characters(database: Database) -> None:
    await add_run(database)
    await set_run_state(database, "run-1", RunState.FAILED, "a\0b")
    run = await get_run(database, "run-1")
    await begin_step(database, step())
    await advance_step(database, step(), StepState.SEALED, drops=[DropRecord("t1", 1, False, "a\0b")])
    (drop,) = await list_drops(database, "run-1")
    await evals.create_job(
        database, EvalRecord("job", EvalState.RUNNING, "", b"", "", 1, (), {}, None, 1.0, None), (1, b"")
    )
    await evals.end_job(database, "job", EvalState.FAILED, "a\0b", (2, b""))
    job = await evals.get_job(database, "job")
    await put_request(database, ObjectRequest("uid", "TrainingRun", "default", "run", 1, "Refused", "a\0b"))
    (request,) = await list_requests(database)
    assert run is not None
    assert job is not None
    assert {run.reason, drop.reason, job.reason, request.message} == {"a\N{REPLACEMENT CHARACTER}b"}


async def test_what_the_store_refuses_is_not_shown_with_what_it_was_given(database: Database) -> None:
    record = EvalRecord("job", EvalState.RUNNING, "", b"", "", 1, (), {}, None, 1.0, None)
    await evals.create_job(database, record, (1, b""))
    item = ItemRecord("q", 0, "an answer", True, False, b"")
    await evals.add_items(database, "job", [item], None, (2, b""), 1.0)
    with pytest.raises(IntegrityError) as refused:
        await evals.add_items(database, "job", [item], None, (3, b""), 1.0)
    assert "eval_items" in str(refused.value)
    assert "an answer" not in str(refused.value)
