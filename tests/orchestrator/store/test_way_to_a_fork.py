"""From which checkpoint a fork gets its weights."""

from dataclasses import asdict
from pathlib import Path

import pytest
from troupe_orchestrator.run_config import Trains
from troupe_orchestrator.store.batches import BatchCollectedError
from troupe_orchestrator.store.checkpoints import record_checkpoint
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.runs import RunRecord, RunState, create_run
from troupe_orchestrator.training.fork import _way_to
from troupe_orchestrator.training.record import Fork, RunOrigin, Source


def left(parent: str, step: int) -> Fork:
    return Fork(parent, step, step, Trains.BOTH, False, True, "", None)


async def test_a_fork_of_a_fork_whose_start_was_collected_never_starts_from_the_initial_weights(tmp_path: Path) -> None:
    database = await Database.open(f"sqlite:///{tmp_path}/troupe.db", 30.0)
    source = Source("c" * 40, False, "0.1.0", "1" * 64, "uv.lock")
    origin = RunOrigin(source, "d" * 64, 10, "e" * 64, 0, (), "full", left("first", 5))
    parent = RunRecord("second", RunState.CANCELLED, "", "", 9, str(tmp_path), 1.0, None)
    await create_run(database, parent, asdict(origin))
    with pytest.raises(BatchCollectedError, match="second, a fork itself"):
        await _way_to(database, left("second", 6), "p")
    await record_checkpoint(database, "second", 5, {"p": {"uri": str(tmp_path / "base"), "update": 0}})
    assert await _way_to(database, left("second", 6), "p") == (str(tmp_path / "base"), [])
    await database.close()
