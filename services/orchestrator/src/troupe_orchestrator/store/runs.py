"""Runs: what each was asked to be, and what became of it. Every function is one transaction."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sqlalchemy import insert, select, update

from troupe_orchestrator.store import schema
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.object_requests import carried_out
from troupe_orchestrator.store.run_events import write_events


class RunState(StrEnum):
    QUEUED = "queued"
    """Waits for the run that holds its policies."""
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class RunRecord:
    run_id: str
    state: RunState
    reason: str
    config: str
    total_steps: int
    folder: str
    created_at: float
    ended_at: float | None
    acknowledged_step: int = 0
    """The newest committed step when the run was last resumed: whoever did so knew which conditions held after it."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """As `create_run` stored it: `training.record.RunOrigin`."""


async def create_run(database: Database, record: RunRecord, provenance: dict[str, Any]) -> None:
    """Add a run."""
    async with database.writing() as connection:
        await connection.execute(
            insert(schema.runs).values(
                run_id=record.run_id,
                state=record.state,
                reason=record.reason,
                config=record.config,
                provenance=provenance,
                total_steps=record.total_steps,
                folder=record.folder,
                created_at=record.created_at,
                ended_at=record.ended_at,
            )
        )


async def get_run(database: Database, run_id: str) -> RunRecord | None:
    async with database.reading() as connection:
        row = (await connection.execute(select(schema.runs).where(schema.runs.c.run_id == run_id))).first()
    return None if row is None else run_record(row)


async def runs_in_state(database: Database, state: RunState) -> list[RunRecord]:
    """All runs that are in a state, oldest first."""
    table = schema.runs.c
    query = select(schema.runs).where(table.state == state).order_by(table.created_at, table.run_id)
    async with database.reading() as connection:
        return [run_record(row) for row in await connection.execute(query)]


async def set_run_state(
    database: Database,
    run_id: str,
    state: RunState,
    reason: str,
    acknowledged_step: int | None = None,
    generation: int | None = None,
    events: Sequence[tuple[int, bytes]] = (),
) -> None:
    """Record what became of a run, with the events that tell of it; an ending state stamps the end.

    Args:
        acknowledged_step: the run's newest committed step, where somebody resumes it who knows what holds after that.
        generation: of the spec of the object that asks for it, which is carried out with this.
    """
    ended = time.time() if state in (RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED) else None
    values: dict[str, Any] = {"state": state, "reason": reason, "ended_at": ended}
    if acknowledged_step is not None:
        values["acknowledged_step"] = acknowledged_step
    async with database.writing() as connection:
        await connection.execute(update(schema.runs).where(schema.runs.c.run_id == run_id).values(values))
        if generation is not None:
            await connection.execute(carried_out(run_id, generation))
        await write_events(connection, run_id, events)


def run_record(row: Any) -> RunRecord:
    """A row of `runs`."""
    return RunRecord(
        run_id=row.run_id,
        state=RunState(row.state),
        reason=row.reason,
        config=row.config,
        total_steps=row.total_steps,
        folder=row.folder,
        created_at=row.created_at,
        ended_at=row.ended_at,
        acknowledged_step=row.acknowledged_step,
        provenance=row.provenance,
    )
