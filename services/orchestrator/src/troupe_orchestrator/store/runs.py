"""Runs, their steps and what belongs to them. Every function is one transaction.

A step goes through the states of `TRANSITIONS`, one after another; each transition is written together with what it
established, so that after a crash the store says exactly what is still to be done.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from troupe_orchestrator.store import schema
from troupe_orchestrator.store.database import Database


class RunState(StrEnum):
    QUEUED = "queued"
    """Waits for the run that holds its policies."""
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class StepState(StrEnum):
    """How far a step is. See TRANSITIONS."""

    ROLLING = "rolling"
    """Tasks are drawn; finished groups are journalled."""
    SEALED = "sealed"
    """Trees and batches are on disk; training is determined."""
    TRAINED = "trained"
    """Every batch is applied by its learner."""
    SYNCED = "synced"
    """Every serving replica has the new weights."""
    COMMITTED = "committed"


TRANSITIONS: dict[StepState | None, StepState | None] = {
    None: StepState.ROLLING,
    StepState.ROLLING: StepState.SEALED,
    StepState.SEALED: StepState.TRAINED,
    StepState.TRAINED: StepState.SYNCED,
    StepState.SYNCED: StepState.COMMITTED,
    StepState.COMMITTED: None,
}


class IllegalTransitionError(RuntimeError):
    """A step was to go where TRANSITIONS does not lead."""


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
    provenance: dict[str, Any] = field(default_factory=dict)
    """As `create_run` stored it: `training.record.RunOrigin`."""


@dataclass(frozen=True, slots=True)
class DropRecord:
    """How often a task was dropped for faults of ours."""

    task_id: str
    count: int
    quarantined: bool
    reason: str
    """Of the last drop."""


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """One policy's sealed batch."""

    policy_id: str
    update: int
    """Number of this policy's update in the run, from 1."""
    digest: str
    """SHA-256, hex."""
    file: str
    sequences: int
    optimization: dict[str, Any]
    """Fields of troupe.v1.Optimization, so that a replay does the same."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    run_id: str
    step: int
    state: StepState
    task_ids: tuple[str, ...]
    queue: dict[str, Any]
    """Where the task queue stands once this step is committed."""
    versions: dict[str, str] = field(default_factory=dict)
    """Policy id to `lineage:number`: what rolled the step out, and from TRAINED on what it produced."""
    batches: tuple[BatchRecord, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)


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
    return None if row is None else _run(row)


async def list_runs(database: Database, limit: int, before: tuple[float, str] | None = None) -> list[RunRecord]:
    """Newest first, at most `limit`; `before` is (created_at, run_id) of the last one of the page before."""
    query = select(schema.runs).order_by(schema.runs.c.created_at.desc(), schema.runs.c.run_id.desc()).limit(limit)
    if before is not None:
        created_at, run_id = before
        query = query.where(
            (schema.runs.c.created_at < created_at)
            | ((schema.runs.c.created_at == created_at) & (schema.runs.c.run_id < run_id))
        )
    async with database.reading() as connection:
        return [_run(row) for row in await connection.execute(query)]


async def set_run_state(database: Database, run_id: str, state: RunState, reason: str) -> None:
    """Record what became of a run; an ending state stamps the end."""
    ended = time.time() if state in (RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED) else None
    async with database.writing() as connection:
        await connection.execute(
            update(schema.runs).where(schema.runs.c.run_id == run_id).values(state=state, reason=reason, ended_at=ended)
        )


async def last_step(database: Database, run_id: str) -> StepRecord | None:
    """The newest step, whatever its state."""
    async with database.reading() as connection:
        row = (
            await connection.execute(
                select(schema.steps)
                .where(schema.steps.c.run_id == run_id)
                .order_by(schema.steps.c.step.desc())
                .limit(1)
            )
        ).first()
    return None if row is None else _step(row)


async def list_steps(database: Database, run_id: str) -> list[StepRecord]:
    """All steps, in order."""
    async with database.reading() as connection:
        rows = await connection.execute(
            select(schema.steps).where(schema.steps.c.run_id == run_id).order_by(schema.steps.c.step)
        )
        return [_step(row) for row in rows]


async def committed_steps(database: Database, run_id: str) -> int:
    async with database.reading() as connection:
        count = await connection.scalar(
            select(func.count())
            .select_from(schema.steps)
            .where(schema.steps.c.run_id == run_id, schema.steps.c.state == StepState.COMMITTED)
        )
    return count or 0


async def begin_step(database: Database, record: StepRecord) -> None:
    """Write a step in ROLLING.

    Raises:
        IllegalTransitionError: the step before is not committed.
    """
    async with database.writing() as connection:
        newest = (
            await connection.execute(
                select(schema.steps.c.step, schema.steps.c.state)
                .where(schema.steps.c.run_id == record.run_id)
                .order_by(schema.steps.c.step.desc())
                .limit(1)
            )
        ).first()
        if newest is not None and (newest.state != StepState.COMMITTED or newest.step + 1 != record.step):
            raise IllegalTransitionError(
                f"step {record.step} of {record.run_id} cannot begin: step {newest.step} is {newest.state}"
            )
        await connection.execute(insert(schema.steps).values(**_step_values(record)))


async def advance_step(
    database: Database, record: StepRecord, state: StepState, events: Sequence[tuple[int, bytes]] = ()
) -> None:
    """Move a step to `state`, with everything in `record` and the events that tell of it, in one transaction.

    Raises:
        IllegalTransitionError: TRANSITIONS does not lead there from what is stored.
    """
    async with database.writing() as connection:
        stored = await connection.scalar(
            select(schema.steps.c.state).where(
                schema.steps.c.run_id == record.run_id, schema.steps.c.step == record.step
            )
        )
        if stored is None or TRANSITIONS[StepState(stored)] is not state:
            raise IllegalTransitionError(f"step {record.step} of {record.run_id} cannot go from {stored} to {state}")
        await connection.execute(
            update(schema.steps)
            .where(schema.steps.c.run_id == record.run_id, schema.steps.c.step == record.step)
            .values(**{**_step_values(record), "state": state})
        )
        if state is StepState.SEALED:
            await connection.execute(
                delete(schema.groups).where(
                    schema.groups.c.run_id == record.run_id, schema.groups.c.step == record.step
                )
            )
        await write_events(connection, record.run_id, events)


async def write_events(connection: AsyncConnection, run_id: str, events: Sequence[tuple[int, bytes]]) -> None:
    """Add numbered events within a transaction."""
    if events:
        await connection.execute(
            insert(schema.events),
            [{"run_id": run_id, "event_id": number, "payload": payload} for number, payload in events],
        )


async def read_events(database: Database, run_id: str, after: int, limit: int = 500) -> list[tuple[int, bytes]]:
    """Events after a number, in order."""
    async with database.reading() as connection:
        rows = await connection.execute(
            select(schema.events.c.event_id, schema.events.c.payload)
            .where(schema.events.c.run_id == run_id, schema.events.c.event_id > after)
            .order_by(schema.events.c.event_id)
            .limit(limit)
        )
        return [(row.event_id, row.payload) for row in rows]


async def newest_events(database: Database, run_id: str, limit: int) -> list[bytes]:
    """The last events, in order."""
    async with database.reading() as connection:
        rows = await connection.execute(
            select(schema.events.c.payload)
            .where(schema.events.c.run_id == run_id)
            .order_by(schema.events.c.event_id.desc())
            .limit(limit)
        )
        return [row.payload for row in rows][::-1]


async def last_event_id(database: Database, run_id: str) -> int:
    async with database.reading() as connection:
        newest = await connection.scalar(
            select(func.max(schema.events.c.event_id)).where(schema.events.c.run_id == run_id)
        )
    return newest or 0


async def journal_group(
    database: Database, run_id: str, step: int, task_id: str, file: str, versions: dict[str, str]
) -> None:
    """Remember that a task's tree is complete and where it is."""
    async with database.writing() as connection:
        await connection.execute(
            insert(schema.groups).values(run_id=run_id, step=step, task_id=task_id, file=file, versions=versions)
        )


async def journalled_groups(database: Database, run_id: str, step: int) -> dict[str, tuple[str, dict[str, str]]]:
    """Task id to (file, versions) of the finished groups of a rolling step."""
    async with database.reading() as connection:
        rows = await connection.execute(
            select(schema.groups).where(schema.groups.c.run_id == run_id, schema.groups.c.step == step)
        )
        return {row.task_id: (row.file, row.versions) for row in rows}


async def forget_groups(database: Database, run_id: str, step: int) -> None:
    """Drop the journal of a step whose policy version is gone."""
    async with database.writing() as connection:
        await connection.execute(
            delete(schema.groups).where(schema.groups.c.run_id == run_id, schema.groups.c.step == step)
        )


async def count_drop(database: Database, run_id: str, task_id: str, reason: str, quarantine_after: int) -> bool:
    """Count a dropped task; true when it is now quarantined."""
    async with database.writing() as connection:
        where = (schema.drops.c.run_id == run_id) & (schema.drops.c.task_id == task_id)
        count = await connection.scalar(select(schema.drops.c.count).where(where))
        quarantined = (count or 0) + 1 >= quarantine_after
        values = {"count": (count or 0) + 1, "quarantined": quarantined, "reason": reason}
        if count is None:
            await connection.execute(insert(schema.drops).values(run_id=run_id, task_id=task_id, **values))
        else:
            await connection.execute(update(schema.drops).where(where).values(**values))
    return quarantined


async def quarantined_tasks(database: Database, run_id: str) -> frozenset[str]:
    async with database.reading() as connection:
        rows = await connection.execute(
            select(schema.drops.c.task_id).where(schema.drops.c.run_id == run_id, schema.drops.c.quarantined)
        )
        return frozenset(row.task_id for row in rows)


async def list_drops(database: Database, run_id: str) -> list[DropRecord]:
    """Every dropped task, by id."""
    async with database.reading() as connection:
        rows = await connection.execute(
            select(schema.drops).where(schema.drops.c.run_id == run_id).order_by(schema.drops.c.task_id)
        )
        return [DropRecord(row.task_id, row.count, row.quarantined, row.reason) for row in rows]


async def index_executions(database: Database, scope: str, step: int, file: str, ids: Sequence[str]) -> None:
    """Remember in which file each execution is."""
    if not ids:
        return
    async with database.writing() as connection:
        await connection.execute(delete(schema.executions).where(schema.executions.c.execution_id.in_(ids)))
        await connection.execute(
            insert(schema.executions),
            [{"execution_id": each, "scope": scope, "step": step, "file": file} for each in ids],
        )


async def find_execution(database: Database, prefix: str) -> list[tuple[str, str, int, str]]:
    """(execution id, scope, step, file) of at most two executions whose id begins with `prefix`."""
    column = schema.executions.c.execution_id
    async with database.reading() as connection:
        rows = await connection.execute(
            select(schema.executions).where(column >= prefix, column < prefix + "g").order_by(column).limit(2)
        )
        return [(row.execution_id, row.scope, row.step, row.file) for row in rows]


async def record_checkpoint(database: Database, run_id: str, step: int, manifest: dict[str, Any]) -> None:
    """Remember a checkpoint: one manifest names the folder of every policy."""
    async with database.writing() as connection:
        await connection.execute(
            delete(schema.checkpoints).where(schema.checkpoints.c.run_id == run_id, schema.checkpoints.c.step == step)
        )
        await connection.execute(insert(schema.checkpoints).values(run_id=run_id, step=step, manifest=manifest))


async def list_checkpoints(database: Database, run_id: str) -> list[tuple[int, dict[str, Any]]]:
    """(step, manifest), newest first."""
    async with database.reading() as connection:
        rows = await connection.execute(
            select(schema.checkpoints)
            .where(schema.checkpoints.c.run_id == run_id)
            .order_by(schema.checkpoints.c.step.desc())
        )
        return [(row.step, row.manifest) for row in rows]


async def forget_checkpoint(database: Database, run_id: str, step: int) -> None:
    async with database.writing() as connection:
        await connection.execute(
            delete(schema.checkpoints).where(schema.checkpoints.c.run_id == run_id, schema.checkpoints.c.step == step)
        )


def _run(row: Any) -> RunRecord:
    return RunRecord(
        run_id=row.run_id,
        state=RunState(row.state),
        reason=row.reason,
        config=row.config,
        total_steps=row.total_steps,
        folder=row.folder,
        created_at=row.created_at,
        ended_at=row.ended_at,
        provenance=row.provenance,
    )


def _step(row: Any) -> StepRecord:
    return StepRecord(
        run_id=row.run_id,
        step=row.step,
        state=StepState(row.state),
        task_ids=tuple(row.task_ids),
        queue=row.queue,
        versions=row.versions,
        batches=tuple(BatchRecord(**batch) for batch in row.batches),
        metrics=row.metrics,
    )


def _step_values(record: StepRecord) -> dict[str, Any]:
    return {
        "run_id": record.run_id,
        "step": record.step,
        "state": record.state,
        "task_ids": list(record.task_ids),
        "queue": record.queue,
        "versions": record.versions,
        "batches": [
            {
                "policy_id": batch.policy_id,
                "update": batch.update,
                "digest": batch.digest,
                "file": batch.file,
                "sequences": batch.sequences,
                "optimization": batch.optimization,
            }
            for batch in record.batches
        ],
        "metrics": record.metrics,
    }
