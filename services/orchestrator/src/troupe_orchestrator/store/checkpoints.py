"""The checkpoints of a run that are kept."""

import asyncio
from typing import Any

from sqlalchemy import delete, insert, select

from troupe_orchestrator.store import schema
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.files import bytes_on_disk


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
