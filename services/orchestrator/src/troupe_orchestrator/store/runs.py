"""Runs, their steps and what belongs to them. Every function is one transaction.

A step goes through the states of `TRANSITIONS`, one after another; each transition is written together with what it
established, so that after a crash the store says exactly what is still to be done.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from troupe_orchestrator.store import schema
from troupe_orchestrator.store.batches import BatchRecord as BatchRecord
from troupe_orchestrator.store.batches import add_batches, batches_of_step
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.executions import TreeFile, add_tree_file
from troupe_orchestrator.store.files import bytes_on_disk
from troupe_orchestrator.store.object_requests import carried_out


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
    acknowledged_step: int = 0
    """The newest committed step when the run was last resumed: whoever did so knew which conditions held after it."""
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
    ends_stage: bool = False
    """Its stage ended with this step, before it had all the steps that it may have."""
    watch: dict[str, Any] = field(default_factory=dict)
    """What the run's conditions knew when the step began, so that nobody has to read the steps before."""


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
) -> None:
    """Record what became of a run; an ending state stamps the end.

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


async def last_step(database: Database, run_id: str) -> StepRecord | None:
    """The newest step, whatever its state."""
    query = select(schema.steps).where(schema.steps.c.run_id == run_id).order_by(schema.steps.c.step.desc()).limit(1)
    async with database.reading() as connection:
        row = (await connection.execute(query)).first()
        if row is None:
            return None
        return _step(row, await batches_of_step(connection, run_id, row.step))


async def committed_steps(database: Database, run_id: str) -> int:
    """Number of the newest committed step, 0 before the first. A step begins only after the one before is committed."""
    query = (
        select(func.max(schema.steps.c.step))
        .where(schema.steps.c.run_id == run_id)
        .where(schema.steps.c.state == StepState.COMMITTED)
    )
    async with database.reading() as connection:
        return await connection.scalar(query) or 0


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
    database: Database,
    record: StepRecord,
    state: StepState,
    events: Sequence[tuple[int, bytes]] = (),
    trees: TreeFile | None = None,
    drops: Sequence[DropRecord] = (),
) -> None:
    """Move a step to `state`, with everything in `record` and the events that tell of it, in one transaction.

    Args:
        trees: where a step that is SEALED has its trees. Its batches and executions are listed from here on.
        drops: of this step's tasks, with their new counts.

    Raises:
        IllegalTransitionError: TRANSITIONS does not lead there from what is stored.
    """
    sizes = await asyncio.to_thread(_batch_bytes, record) if state is StepState.SEALED else []
    tree_bytes = 0 if trees is None else await asyncio.to_thread(bytes_on_disk, trees.path)
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
            await add_batches(connection, record.run_id, record.step, record.batches, sizes)
            if trees is not None:
                await add_tree_file(connection, record.run_id, record.step, trees, tree_bytes)
            await connection.execute(
                delete(schema.groups).where(
                    schema.groups.c.run_id == record.run_id, schema.groups.c.step == record.step
                )
            )
        await _write_drops(connection, record.run_id, drops)
        await write_events(connection, record.run_id, events)


async def _write_drops(connection: AsyncConnection, run_id: str, drops: Sequence[DropRecord]) -> None:
    if not drops:
        return
    dropped = schema.drops.c.task_id.in_([drop.task_id for drop in drops])
    await connection.execute(delete(schema.drops).where(schema.drops.c.run_id == run_id, dropped))
    await connection.execute(insert(schema.drops), [{"run_id": run_id, **asdict(drop)} for drop in drops])


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


async def stage_ends(database: Database, run_id: str) -> tuple[int, ...]:
    """Steps with which a stage ended before it had all its steps, in order."""
    table = schema.steps.c
    query = select(table.step).where(table.run_id == run_id, table.ends_stage).order_by(table.step)
    async with database.reading() as connection:
        return tuple(await connection.scalars(query))


async def metrics_of_steps(database: Database, run_id: str, first_step: int, last_step: int) -> list[dict[str, float]]:
    """Metrics of the steps from one to another, in order."""
    table = schema.steps.c
    query = (
        select(table.metrics)
        .where(table.run_id == run_id, table.step.between(first_step, last_step))
        .order_by(table.step)
    )
    async with database.reading() as connection:
        return list(await connection.scalars(query))


async def queue_after(database: Database, run_id: str, step: int) -> dict[str, Any] | None:
    """Where the task queue stands after a step; None where the run has no such step."""
    query = select(schema.steps.c.queue).where(schema.steps.c.run_id == run_id, schema.steps.c.step == step)
    async with database.reading() as connection:
        queue: dict[str, Any] | None = await connection.scalar(query)
    return queue


async def step_metrics(database: Database, run_id: str, step: int) -> dict[str, float]:
    """Metrics of a step, none where the run has no such step."""
    query = select(schema.steps.c.metrics).where(schema.steps.c.run_id == run_id, schema.steps.c.step == step)
    async with database.reading() as connection:
        metrics: dict[str, float] | None = await connection.scalar(query)
    return metrics or {}


async def step_versions(database: Database, run_id: str, step: int) -> dict[str, str]:
    """Policy id to the version that a step has made, or will begin with; none where the run has no such step."""
    query = select(schema.steps.c.versions).where(schema.steps.c.run_id == run_id, schema.steps.c.step == step)
    async with database.reading() as connection:
        versions: dict[str, str] | None = await connection.scalar(query)
    return versions or {}


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
    size = await asyncio.to_thread(bytes_on_disk, file)
    async with database.writing() as connection:
        await connection.execute(
            insert(schema.groups).values(
                run_id=run_id, step=step, task_id=task_id, file=file, bytes=size, versions=versions
            )
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
        # By name: a row is a tuple too, and `count` is a method of tuples.
        return [DropRecord(row["task_id"], row["count"], row["quarantined"], row["reason"]) for row in rows.mappings()]


async def record_checkpoint(database: Database, run_id: str, step: int, manifest: dict[str, Any]) -> None:
    """Remember a checkpoint: one manifest names the folder of every policy."""
    size = await asyncio.to_thread(lambda: sum(bytes_on_disk(policy["uri"]) for policy in manifest.values()))
    async with database.writing() as connection:
        await connection.execute(
            delete(schema.checkpoints).where(schema.checkpoints.c.run_id == run_id, schema.checkpoints.c.step == step)
        )
        await connection.execute(
            insert(schema.checkpoints).values(run_id=run_id, step=step, manifest=manifest, bytes=size)
        )


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


def _batch_bytes(record: StepRecord) -> list[int]:
    return [bytes_on_disk(batch.file) for batch in record.batches]


def _step(row: Any, batches: tuple[BatchRecord, ...]) -> StepRecord:
    return StepRecord(
        run_id=row.run_id,
        step=row.step,
        state=StepState(row.state),
        task_ids=tuple(row.task_ids),
        queue=row.queue,
        versions=row.versions,
        batches=batches,
        metrics=row.metrics,
        ends_stage=row.ends_stage,
        watch=row.watch,
    )


def _step_values(record: StepRecord) -> dict[str, Any]:
    return {
        "run_id": record.run_id,
        "step": record.step,
        "state": record.state,
        "task_ids": list(record.task_ids),
        "queue": record.queue,
        "versions": record.versions,
        "metrics": record.metrics,
        "ends_stage": record.ends_stage,
        "watch": record.watch,
    }
