"""The journal of a rolling step: which of its tasks are done, and in which file each one's tree is.

Sealing the step replaces it: from then on the trees are listed with the step.
"""

import asyncio

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from troupe_orchestrator.store import schema
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.files import bytes_on_disk


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
        await clear_journal(connection, run_id, step)


async def clear_journal(connection: AsyncConnection, run_id: str, step: int) -> None:
    """Drop the journal of a step within a transaction."""
    await connection.execute(
        delete(schema.groups).where(schema.groups.c.run_id == run_id, schema.groups.c.step == step)
    )
