"""Connection, migrations and the lease.

One orchestrator writes a store at a time. It holds a lease whose token grows with every take-over; every transaction that
writes checks the token inside itself, so a stale orchestrator can do nothing, however long it was asleep.
"""

import asyncio
import contextlib
import os
import socket
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import structlog
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, event, insert, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from troupe.v1 import common_pb2

from troupe_orchestrator.store import schema

logger = structlog.get_logger()
_MIGRATIONS = Path(__file__).parent / "migrations"


class LeaseHeldError(RuntimeError):
    """Another orchestrator owns the store."""


class LeaseLostError(RuntimeError):
    """This orchestrator no longer owns the store: it must stop writing."""


class Database:
    """The store's metadata, owned while the lease holds. Use `Database.open`."""

    def __init__(self, engine: AsyncEngine, holder: str, store_id: str, token: int, seconds: float) -> None:
        self._engine = engine
        self._holder = holder
        self._seconds = seconds
        self.fence = common_pb2.Fence(store_id=store_id, token=token)
        self._renewal = asyncio.create_task(self._renew(), name="lease")
        self.lost = asyncio.Event()
        """Set when the lease is gone."""

    @classmethod
    async def open(cls, url: str, lease_seconds: float, wait_seconds: float = 0.0) -> "Database":
        """Connect, migrate, take the lease.

        Args:
            wait_seconds: how long to wait for a lease that another process holds (a predecessor that was killed).

        Raises:
            LeaseHeldError: it is still held after that.
        """
        engine = create_async_engine(url)
        if engine.dialect.name == "sqlite":
            event.listen(engine.sync_engine, "connect", _configure_sqlite)
            event.listen(engine.sync_engine, "begin", _begin_sqlite)
        async with engine.begin() as connection:
            await connection.run_sync(_migrate)
        holder = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        give_up = time.monotonic() + wait_seconds
        while True:
            async with engine.begin() as connection:
                taken = await _take(connection, holder, lease_seconds)
            if isinstance(taken, tuple):
                return cls(engine, holder, taken[0], taken[1], lease_seconds)
            if time.monotonic() >= give_up:
                await engine.dispose()
                raise LeaseHeldError(
                    f"the store {engine.url.render_as_string(hide_password=True)} is held by orchestrator {taken}; "
                    "stop that one, or give this one a store of its own"
                )
            await asyncio.sleep(0.2)

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that is ours: it fails when the lease is not.

        Raises:
            LeaseLostError: another orchestrator has taken over.
        """
        async with self._engine.begin() as connection:
            token = await connection.scalar(select(schema.lease.c.token))
            if token != self.fence.token:
                self.lost.set()
                raise LeaseLostError(f"the store's lease went from {self.fence.token} to {token}")
            yield connection

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that only reads."""
        async with self._engine.connect() as connection:
            yield await connection.execution_options(troupe_read_only=True)

    async def close(self) -> None:
        """Give the lease back and disconnect."""
        self._renewal.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._renewal
        async with self._engine.begin() as connection:
            await connection.execute(
                update(schema.lease).where(schema.lease.c.holder == self._holder).values(expires_at=0.0)
            )
        await self._engine.dispose()

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._seconds / 3)
            try:
                async with self._engine.begin() as connection:
                    renewed = await connection.execute(
                        update(schema.lease)
                        .where(schema.lease.c.token == self.fence.token)
                        .values(expires_at=time.time() + self._seconds)
                    )
            except SQLAlchemyError as error:
                # Tried again at the next turn; until another process takes it the lease stays ours.
                logger.warning("could not renew the lease", error=str(error))
                continue
            if renewed.rowcount == 0:
                logger.error("lease lost", token=self.fence.token)
                self.lost.set()
                return


async def _take(connection: AsyncConnection, holder: str, seconds: float) -> tuple[str, int] | str:
    """The store's id and our token, or who holds it."""
    now = time.time()
    row = (await connection.execute(select(schema.lease).with_for_update())).first()
    if row is None:
        store_id = uuid.uuid4().hex
        await connection.execute(
            insert(schema.lease).values(id=1, store_id=store_id, token=1, holder=holder, expires_at=now + seconds)
        )
        return store_id, 1
    if row.expires_at > now:
        return str(row.holder)
    taken = await connection.execute(
        update(schema.lease)
        .where(schema.lease.c.token == row.token)
        .values(token=row.token + 1, holder=holder, expires_at=now + seconds)
    )
    return (row.store_id, row.token + 1) if taken.rowcount else "another process, just now"


def _migrate(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads before it writes must lock first: a deferred one fails when another wrote in between.
    read_only = connection.get_execution_options().get("troupe_read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _configure_sqlite(connection: object, _record: object) -> None:
    connection.isolation_level = None  # type: ignore[attr-defined]  # the driver begins nothing by itself
    cursor = connection.cursor()  # type: ignore[attr-defined]
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA busy_timeout=10000")
    cursor.close()
