"""The journal of a rolling step: which of its tasks are done, and in which file each one's tree is.

Sealing the step replaces it: from then on the trees are listed with the step.
"""

import asyncio
from dataclasses import dataclass

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from troupe_orchestrator.store import schema
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.files import bytes_on_disk


@dataclass(frozen=True, slots=True)
class JournalledGroup:
    """Where a finished task's tree is."""

    file: str
    versions: dict[str, str]
    """Policy id to the version that rolled it out."""
    digest: str
    """SHA-256 of the file, hex; empty where it was written before digests were kept."""


async def journal_group(database: Database, run_id: str, step: int, task_id: str, group: JournalledGroup) -> None:
    """Remember that a task's tree is complete and where it is."""
    size = await asyncio.to_thread(bytes_on_disk, group.file)
    async with database.writing() as connection:
        await connection.execute(
            insert(schema.groups).values(
                run_id=run_id,
                step=step,
                task_id=task_id,
                file=group.file,
                bytes=size,
                versions=group.versions,
                digest=group.digest,
            )
        )


async def journalled_groups(database: Database, run_id: str, step: int) -> dict[str, JournalledGroup]:
    """Task id to the finished group, of a rolling step."""
    async with database.reading() as connection:
        rows = await connection.execute(
            select(schema.groups).where(schema.groups.c.run_id == run_id, schema.groups.c.step == step)
        )
        return {row.task_id: JournalledGroup(row.file, row.versions, row.digest) for row in rows}


async def forget_groups(database: Database, run_id: str, step: int) -> None:
    """Drop the journal of a step that cannot go on from it."""
    async with database.writing() as connection:
        await clear_journal(connection, run_id, step)


async def clear_journal(connection: AsyncConnection, run_id: str, step: int) -> None:
    """Drop the journal of a step within a transaction."""
    await connection.execute(
        delete(schema.groups).where(schema.groups.c.run_id == run_id, schema.groups.c.step == step)
    )
