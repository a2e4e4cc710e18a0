"""Tasks that a run dropped for faults of ours, and those that it draws no more because of it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from troupe_orchestrator.store import schema
from troupe_orchestrator.store.database import Database


@dataclass(frozen=True, slots=True)
class DropRecord:
    """How often a task was dropped for faults of ours."""

    task_id: str
    count: int
    quarantined: bool
    reason: str
    """Of the last drop."""


async def write_drops(connection: AsyncConnection, run_id: str, drops: Sequence[DropRecord]) -> None:
    """Put the new counts of these tasks in the place of the old, within a transaction."""
    if not drops:
        return
    dropped = schema.drops.c.task_id.in_([drop.task_id for drop in drops])
    await connection.execute(delete(schema.drops).where(schema.drops.c.run_id == run_id, dropped))
    await connection.execute(insert(schema.drops), [{"run_id": run_id, **asdict(drop)} for drop in drops])


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
