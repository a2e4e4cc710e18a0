"""How a run ended is put on record, whatever words there are for it."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import text
from troupe.v1 import training_pb2
from troupe_orchestrator.store.database import Database, StoreUnavailableError
from troupe_orchestrator.store.outages import Outage
from troupe_orchestrator.store.runs import RunRecord, RunState, create_run, get_run, set_run_state
from troupe_orchestrator.training import active_run, run_records
from troupe_orchestrator.training.active_run import ActiveRun
from troupe_orchestrator.training.run_records import RunRecords

RUN = RunRecord("run", RunState.RUNNING, "", "config", 3, "/nowhere", 1.0, None)


class _Ends:
    """A loop that ends with an error at once."""

    waits_for = ""
    waits_for_its_turn = False

    def __init__(self, error: Exception) -> None:
        self._error = error

    def stop(self) -> None:
        pass

    async def run(self) -> bool:
        raise self._error


async def ended(
    database: Database, error: Exception, when_made: Callable[[ActiveRun], Awaitable[None]] | None = None
) -> tuple[RunRecord, list[Any]]:
    """The run and its events after its loop ended so."""
    await create_run(database, RUN, {})
    records = RunRecords(database)
    events = await records.events(RUN.run_id)
    freed = asyncio.Event()
    run = ActiveRun(RUN.run_id, cast("Any", _Ends(error)), events, database, records, (), freed.set)
    if when_made is not None:
        await when_made(run)
    await run.task
    assert freed.is_set()
    stored = await get_run(database, RUN.run_id)
    assert stored is not None
    return stored, [event async for event in events.watch(after=0)]


async def test_a_run_that_ends_with_a_nul_in_its_words_is_not_left_running(database: Database) -> None:
    run, events = await ended(database, RuntimeError("the answer 4\x002 is odd"))
    assert (run.state, run.reason) == (RunState.FAILED, "RuntimeError: the answer 4\N{REPLACEMENT CHARACTER}2 is odd")
    assert [event.WhichOneof("event") for event in events] == ["condition", "state_changed"]


async def test_a_reason_that_the_store_refuses_is_recorded_as_a_shorter_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(active_run, "STORE_PAUSE_SECONDS", 0.01)
    database = await Database.open(f"sqlite:///{tmp_path}/troupe.db", 30.0)
    async with database.writing() as connection:
        await connection.execute(
            text(
                "CREATE TRIGGER odd BEFORE UPDATE ON runs WHEN new.reason LIKE '%odd%' "
                "BEGIN SELECT RAISE(ABORT, 'no'); END"
            )
        )
    run, events = await ended(database, OSError("the disk is odd"))
    assert run.state is RunState.PAUSED
    assert "IntegrityError" in run.reason
    assert "the orchestrator's log" in run.reason
    told = {event.condition.reason: event.condition.message for event in events if event.HasField("condition")}
    assert sorted(told) == ["StorageFailed", "StoreFailed"]
    assert "odd" not in told["StoreFailed"]
    assert events[-1].HasField("state_changed")
    await database.close()


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "undone"])
async def test_an_end_whose_commit_is_not_answered_is_told_once(
    database: Database, stored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    unanswered = [True]

    async def answered_once_more(*arguments: Any) -> None:
        if stored or not unanswered:
            await set_run_state(*arguments)
        if unanswered:
            unanswered.pop()
            raise StoreUnavailableError("store", Outage("was reset", "wait"), ConnectionError("reset"), True)

    monkeypatch.setattr(run_records, "set_run_state", answered_once_more)
    monkeypatch.setattr(active_run, "STORE_PAUSE_SECONDS", 0.01)
    run, events = await ended(database, OSError("the disk is odd"))
    assert run.state is RunState.PAUSED
    told = [event.condition.reason for event in events if event.HasField("condition")]
    assert told == (["StorageFailed"] if stored else ["StoreUnavailable", "StorageFailed"])
    assert [event.event_id for event in events] == list(range(1, len(told) + 2))
    assert events[-1].state_changed.state == training_pb2.RUN_STATE_PAUSED


async def test_a_run_that_is_cancelled_before_its_loop_has_begun_is_cancelled(database: Database) -> None:
    run, events = await ended(
        database, OSError("its loop must not run"), lambda made: made.stop(RunState.CANCELLED, "by request")
    )
    assert (run.state, run.reason) == (RunState.CANCELLED, "by request")
    assert [event.state_changed.state for event in events] == [training_pb2.RUN_STATE_CANCELLED]
