"""How long a run waits for what is away, and how it tells of a store that cannot be told."""

from pathlib import Path

import pytest
from storage.locked_file import locked
from troupe.v1 import training_pb2
from troupe_orchestrator.store.database import Database, StoreUnavailableError
from troupe_orchestrator.store.run_events import newest_events
from troupe_orchestrator.store.runs import RunRecord, RunState, create_run
from troupe_orchestrator.training import endurance
from troupe_orchestrator.training.endurance import Endurance, pause_seconds
from troupe_orchestrator.training.events import EventLog
from troupe_orchestrator.training.protocol import Work

RUN = RunRecord("run", RunState.RUNNING, "", "config", 3, "/nowhere", 1.0, None)


def test_pauses_grow_to_a_limit_however_often_it_failed() -> None:
    assert [pause_seconds(failures) for failures in (1, 2, 3, 100, 100_000)] == [0.5, 1.0, 2.0, 10.0, 10.0]


async def test_what_a_locked_store_does_not_take_is_what_the_run_waits_for_and_is_told_once_it_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endurance, "_FIRST_PAUSE_SECONDS", 0.01)
    file = tmp_path / "troupe.db"
    database = await Database.open(f"sqlite:///{file}", 30.0, patience_seconds=0.05)
    await create_run(database, RUN, {})
    bears = Endurance(await EventLog.open(database, RUN.run_id), 0.0)
    with locked(file):
        for action in (Work.COMMIT, None, None, None):
            with pytest.raises(StoreUnavailableError) as away:
                await create_run(database, RUN, {})
            await bears.endure(action, away.value, 3)
            with pytest.raises(StoreUnavailableError):
                await bears.tell()
        assert bears.waits_for.startswith("waits: StoreUnavailable: the store ")
        assert f"{file} is locked" in bears.waits_for
        assert await newest_events(database, RUN.run_id, 10) == []
    await bears.tell()
    bears.begins()
    (payload,) = await newest_events(database, RUN.run_id, 10)
    event = training_pb2.RunEvent.FromString(payload)
    assert (event.step, event.condition.reason) == (3, "StoreUnavailable")
    assert "end the process that holds it" in event.condition.message
    assert bears.waits_for == ""
    await database.close()
