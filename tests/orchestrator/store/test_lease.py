"""One orchestrator at a time: who holds the store, who may take it, and that whoever lost it can do nothing."""

import asyncio
import contextlib
import importlib
import inspect
import pkgutil
import random
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any, get_type_hints

import pytest
from sqlalchemy import event, make_url, select
from storage.postgres import PostgresServer
from troupe_orchestrator import store
from troupe_orchestrator.store import evals, loans, schema
from troupe_orchestrator.store.batches import BatchRecord
from troupe_orchestrator.store.database import Database, LeaseHeldError, LeaseLostError, StoreUnavailableError
from troupe_orchestrator.store.drops import list_drops
from troupe_orchestrator.store.evals import EvalRecord, EvalState
from troupe_orchestrator.store.executions import TreeFile
from troupe_orchestrator.store.journal import JournalledGroup, journal_group
from troupe_orchestrator.store.object_requests import ObjectRequest
from troupe_orchestrator.store.runs import RunRecord, RunState, create_run, runs_in_state, set_run_state
from troupe_orchestrator.store.steps import StepRecord, StepState, advance_step, begin_step

RUN = RunRecord("run-1", RunState.RUNNING, "", "config", 3, "/nowhere", 1.0, None)
BATCH = BatchRecord("p", 1, "00", "/nowhere/batch", 1, {})
STEP = StepRecord("run-1", 1, StepState.ROLLING, ("t1",), {"seed": 1}, {"p": "a:0"}, (BATCH,))


async def open_store(url: str, lease_seconds: float = 30.0, **options: float) -> Database:
    return await Database.open(url, lease_seconds, **options)


async def fallen_asleep(url: str) -> Database:
    """An orchestrator whose lease has expired, as when its process was stopped for longer than that."""
    stale = await open_store(url, 1.0)
    stale._renewal.cancel()
    await asyncio.sleep(1.1)
    return stale


async def test_a_second_orchestrator_on_the_same_store_is_refused_by_name(store_url: str) -> None:
    first = await open_store(store_url)
    with pytest.raises(LeaseHeldError, match=r"is held by orchestrator .*; stop that one"):
        await open_store(store_url)
    await first.close()


async def test_a_closed_store_can_be_taken_and_the_fence_grows(store_url: str) -> None:
    first = await open_store(store_url)
    await first.close()
    second = await open_store(store_url)
    assert second.fence.store_id == first.fence.store_id
    assert second.fence.token == first.fence.token + 1
    await second.close()


async def test_a_lease_is_renewed_again_after_no_connection_was_free(store_url: str) -> None:
    owner = await open_store(store_url, 1.5)
    pool: Any = owner._engine.sync_engine.pool
    pool._timeout = 0.01
    held = [await owner._engine.connect() for _ in range(pool.size() + pool._max_overflow)]
    await asyncio.sleep(0.8)
    for connection in held:
        await connection.close()
    await asyncio.sleep(1.2)
    with pytest.raises(LeaseHeldError):
        await open_store(store_url)
    await owner.close()


async def test_a_lease_that_is_renewed_outlives_its_seconds(store_url: str) -> None:
    owner = await open_store(store_url, 0.6)
    await asyncio.sleep(1.2)
    with pytest.raises(LeaseHeldError):
        await open_store(store_url)
    await owner.close()


async def test_a_clock_of_ours_that_is_ahead_takes_nobodys_lease(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = await open_store(store_url)
    ahead = time.time() + 3600
    monkeypatch.setattr(time, "time", lambda: ahead)
    with pytest.raises(LeaseHeldError):
        await open_store(store_url)
    await owner.close()


async def test_of_orchestrators_that_start_at_once_on_an_empty_store_one_gets_it(store_url: str) -> None:
    outcomes = await asyncio.gather(*(open_store(store_url) for _ in range(6)), return_exceptions=True)
    owners = [outcome for outcome in outcomes if isinstance(outcome, Database)]
    assert len(owners) == 1, outcomes
    assert all(isinstance(outcome, LeaseHeldError) for outcome in outcomes if outcome is not owners[0]), outcomes
    assert owners[0].fence.token == 1
    await owners[0].close()


STARTER = """
import asyncio, sys
from troupe_orchestrator.store.database import Database, LeaseHeldError
async def main():
    try:
        await Database.open(sys.argv[1], 30.0)
    except LeaseHeldError:
        return "held"
    return "ours"
print(asyncio.run(main()))
"""


def test_of_processes_that_start_at_once_on_an_empty_store_one_gets_it(store_url: str) -> None:
    started = [
        subprocess.Popen([sys.executable, "-c", STARTER, store_url], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = [process.communicate(timeout=60)[0].strip() for process in started]
    assert sorted(said) == ["held", "held", "ours"]


async def test_a_transaction_that_has_begun_ends_before_another_orchestrator_takes_over(store_url: str) -> None:
    stale = await fallen_asleep(store_url)
    async with stale.writing() as connection:  # the token is checked, and still ours
        taking = asyncio.create_task(open_store(store_url))
        await asyncio.sleep(0.4)
        assert not taking.done()
        await connection.execute(
            schema.drops.insert().values(run_id="r", task_id="t", count=1, quarantined=False, reason="")
        )
    owner = await taking
    assert await list_drops(owner, "r") != []
    with pytest.raises(LeaseLostError):
        await create_run(stale, RUN, {})
    assert await runs_in_state(owner, RunState.RUNNING) == []
    await owner.close()


async def test_postgresql_ends_the_transaction_of_a_process_that_was_stopped_amid_it(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    stale = await fallen_asleep(url)
    owner = None
    with pytest.raises(StoreUnavailableError):  # noqa: PT012  # the transaction is what ends so
        async with stale.writing() as connection:
            owner = await open_store(url, wait_seconds=10)  # waits until the server has ended it
            await connection.execute(select(schema.lease))
    assert owner is not None
    assert owner.fence.token == 2
    await owner.close()


async def test_a_database_that_is_exchanged_for_another_is_lost(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    first = await open_store(url, 0.6)
    postgres.execute("drop schema public cascade", make_url(url).database)
    await asyncio.wait_for(first.lost.wait(), 10)
    await first.close()


async def test_whoever_lost_the_store_can_call_any_of_its_functions_and_change_nothing(store_url: str) -> None:
    stale = await fallen_asleep(store_url)
    await create_run(stale, RUN, {})
    await begin_step(stale, STEP)
    await advance_step(stale, STEP, StepState.SEALED)
    await journal_group(stale, "run-1", 1, "t0", JournalledGroup("file", {}, ""))
    owner = await open_store(store_url)
    before = await contents(owner)
    writers = []
    for name, function in functions().items():
        with sent(stale) as statements:
            try:
                await function(stale, **arguments(name, function))
            except LeaseLostError:
                writers.append(name)
        assert statements == [], f"{name} wrote as a stale orchestrator"
    assert await contents(owner) == before
    assert stale.lost.is_set()
    # What did not fail only reads, for the owner too.
    for name, function in functions().items():
        if name not in writers:
            with sent(owner) as statements:
                await function(owner, **arguments(name, function))
            assert statements == [], f"{name} writes, and not through Database.writing"
    assert {"create_run", "advance_step", "end_job", "index_executions", "forget_files"} <= set(writers)
    await owner.close()


# One sample of each argument that functions of the store take, by its name; a new name needs one here.
SAMPLES: dict[str, Any] = {
    "after": 0,
    "after_step": 0,
    "batches_until": {"p": 1},
    "event": (2, b"event"),
    "group": JournalledGroup("/nowhere/file", {"p": "a:0"}, ""),
    "items": [evals.ItemRecord("q", 0, "", True, False, b"")],
    "first_step": 1,
    "job_id": "job-1",
    "job_ids": ["job-1", "job-2"],
    "keep_items": False,
    "last_step": 2,
    "limit": 10,
    "loans": [loans.Loan("p", "job-1", "a:0", "model")],
    "manifest": {"p": {"uri": "/nowhere"}},
    "policy_id": "p",
    "prefix": "abc",
    "provenance": {},
    "quarantine_after": 3,
    "reason": "because",
    "request": ObjectRequest("uid-2", "TrainingRun", "troupe", "one", 1),
    "run_id": "run-1",
    "scope": "run-1",
    "seconds": 0.5,
    "step": 1,
    "task_id": "t1",
    "trees": TreeFile("/nowhere/trees", ["abcdef0124"], "00"),
    "trees_until": 1,
    "uid": "uid-1",
    "until_step": 2,
    "update": 1,
    "versions": {"p": "a:0"},
}
# And of those whose type depends on the function.
OWN_SAMPLES: dict[tuple[str, str], Any] = {
    ("add_items", "events"): [(3, b"event")],
    ("advance_step", "record"): STEP,
    ("advance_step", "state"): StepState.TRAINED,
    ("begin_step", "record"): replace(STEP, run_id="run-2"),
    ("create_job", "event"): (1, b"event"),
    ("create_job", "record"): EvalRecord("job-1", EvalState.RUNNING, "", b"", "", 1, (), {}, None, 1.0, None),
    ("create_run", "record"): replace(RUN, run_id="run-2"),
    ("end_job", "state"): EvalState.FAILED,
    ("runs_in_state", "state"): RunState.RUNNING,
    ("set_run_state", "state"): RunState.PAUSED,
}
Function = Callable[..., Awaitable[Any]]


def functions() -> dict[str, Function]:
    """Every function of the store's modules that takes a database; those that create what others change come first."""
    modules = [
        importlib.import_module(found.name)
        for found in pkgutil.iter_modules(store.__path__, "troupe_orchestrator.store.")
    ]
    found = {
        name: function
        for module in modules
        for name, function in inspect.getmembers(module, inspect.iscoroutinefunction)
        if function.__module__ == module.__name__ and get_type_hints(function).get("database") is Database
    }
    return dict(sorted(found.items(), key=lambda item: (not item[0].startswith("create"), item[0])))


def arguments(name: str, function: Function) -> dict[str, Any]:
    chosen = {}
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        if (name, parameter.name) in OWN_SAMPLES:
            chosen[parameter.name] = OWN_SAMPLES[name, parameter.name]
        elif parameter.default is inspect.Parameter.empty:
            assert parameter.name in SAMPLES, f"{name}: add a sample of {parameter.name!r} to this test"
            chosen[parameter.name] = SAMPLES[parameter.name]
    return chosen


async def contents(database: Database) -> dict[str, list[tuple[str, ...]]]:
    """All rows of all tables but the lease, which its holder renews."""
    async with database.reading() as connection:
        return {
            table.name: sorted(tuple(map(repr, row)) for row in await connection.execute(select(table)))
            for table in schema.metadata.sorted_tables
            if table is not schema.lease
        }


@contextlib.contextmanager
def sent(database: Database) -> Iterator[list[str]]:
    """The statements that change something and are sent meanwhile."""
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.lstrip().upper().startswith(("INSERT", "UPDATE", "DELETE")) and "lease" not in statement:
            statements.append(statement)

    event.listen(database._engine.sync_engine, "before_cursor_execute", note)
    yield statements
    event.remove(database._engine.sync_engine, "before_cursor_execute", note)


async def test_transactions_that_are_cancelled_at_any_moment_hold_no_lock(store_url: str) -> None:
    database = await open_store(store_url)
    errors = []  # as somebody who keeps what a cancelled task said
    moments = random.Random(0)
    for number in range(150):
        run_id = f"run-{number}"
        writing = asyncio.create_task(create_run(database, replace(RUN, run_id=run_id), {}))
        await asyncio.sleep(moments.random() * 0.006)
        writing.cancel()
        errors += await asyncio.gather(writing, return_exceptions=True)
        await asyncio.wait_for(set_run_state(database, run_id, RunState.PAUSED, ""), 4)
    assert any(isinstance(error, asyncio.CancelledError) for error in errors)
    await database.close()
