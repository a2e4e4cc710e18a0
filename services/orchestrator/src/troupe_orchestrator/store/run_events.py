"""The events of a run, by number. Those that tell of a transition are written in its transaction."""

from collections.abc import Sequence

from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from troupe_orchestrator.store import schema
from troupe_orchestrator.store.database import Database


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
