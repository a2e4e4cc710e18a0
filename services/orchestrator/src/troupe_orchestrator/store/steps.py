"""The steps of a run and their transitions. Every function is one transaction.

A step goes through the states of `TRANSITIONS`, one after another; each transition is written together with what it
established, so that after a crash the store says exactly what is still to be done.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sqlalchemy import func, insert, select, update

from troupe_orchestrator.store import schema
from troupe_orchestrator.store.batches import BatchRecord, add_batches, batches_of_step
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.drops import DropRecord, write_drops
from troupe_orchestrator.store.executions import TreeFile, add_tree_file
from troupe_orchestrator.store.files import bytes_on_disk
from troupe_orchestrator.store.journal import clear_journal
from troupe_orchestrator.store.run_events import write_events


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
    tree_bytes = 0 if trees is None else await asyncio.to_thread(trees.bytes_on_disk)
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
            await clear_journal(connection, record.run_id, record.step)
        await write_drops(connection, record.run_id, drops)
        await write_events(connection, record.run_id, events)


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
