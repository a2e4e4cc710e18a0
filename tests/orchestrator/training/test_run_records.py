"""A run's state and the event that tells of it are one: both are on record, once, or neither is."""

import pytest
from sqlalchemy.exc import IntegrityError
from troupe.v1 import training_pb2
from troupe_orchestrator.store.database import Database, StoreUnavailableError
from troupe_orchestrator.store.outages import Outage
from troupe_orchestrator.store.run_events import write_events
from troupe_orchestrator.store.runs import RunRecord, RunState, create_run, set_run_state
from troupe_orchestrator.training import run_records
from troupe_orchestrator.training.run_records import RunRecords

RUN = RunRecord("run", RunState.RUNNING, "", "config", 3, "/nowhere", 1.0, None)
SUCCEEDED = training_pb2.RUN_STATE_SUCCEEDED


async def test_a_state_whose_event_cannot_be_stored_is_not_recorded(database: Database) -> None:
    await create_run(database, RUN, {})
    records = RunRecords(database)
    await records.events(RUN.run_id)
    async with database.writing() as connection:  # the number that the event is given is taken
        await write_events(connection, RUN.run_id, [(1, b"")])
    with pytest.raises(IntegrityError):
        await records.set_state(RUN.run_id, RunState.SUCCEEDED, "")
    assert (await records.get(RUN.run_id)).state is RunState.RUNNING
    await records.set_state(RUN.run_id, RunState.SUCCEEDED, "")
    assert (await records.get(RUN.run_id)).state is RunState.SUCCEEDED


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "undone"])
async def test_a_state_whose_commit_is_not_answered_is_told_once_when_it_is_recorded_again(
    database: Database, stored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unanswered(*arguments: object) -> None:
        if stored:
            await set_run_state(*arguments)  # type: ignore[arg-type]
        raise StoreUnavailableError("store", Outage("was reset", "wait"), ConnectionError("reset"), True)

    await create_run(database, RUN, {})
    records = RunRecords(database)
    with monkeypatch.context() as patched:
        patched.setattr(run_records, "set_run_state", unanswered)
        with pytest.raises(StoreUnavailableError):
            await records.set_state(RUN.run_id, RunState.SUCCEEDED, "")
    await records.set_state(RUN.run_id, RunState.SUCCEEDED, "")
    assert (await records.get(RUN.run_id)).state is RunState.SUCCEEDED
    events = await records.events(RUN.run_id)
    await events.end()
    assert [(event.event_id, event.state_changed.state) async for event in events.watch(0)] == [(1, SUCCEEDED)]
