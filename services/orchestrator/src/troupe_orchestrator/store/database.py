"""The store's SQL while it is ours: transactions that check the lease, and its renewal.

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
from typing import Self

import structlog
from sqlalchemy.exc import DBAPIError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from troupe.v1 import common_pb2

from troupe_orchestrator.store import lease
from troupe_orchestrator.store.engine import connect, reading_options
from troupe_orchestrator.store.lease import Lease, LeaseHeldError, LeaseLostError
from troupe_orchestrator.store.opening import open_store
from troupe_orchestrator.store.outages import StoreUnavailableError, outage_of, waiting_out

__all__ = ["Database", "LeaseHeldError", "LeaseLostError", "StoreUnavailableError"]

logger = structlog.get_logger()
_POLL_SECONDS = 0.2


class Database:
    """The store's metadata, owned while the lease holds. Use `Database.open`."""

    def __init__(self, engine: AsyncEngine, ours: Lease, lease_seconds: float, patience_seconds: float) -> None:
        self._engine = engine
        self._ours = ours
        self._lease_seconds = lease_seconds
        self._patience_seconds = patience_seconds
        # Writers exclude each other in the database anyway: here they wait in turn, and hold no connection meanwhile.
        self._turn = asyncio.Lock()
        self.name = _name(engine)
        """The store, for people."""
        self.fence = common_pb2.Fence(store_id=ours.store_id, token=ours.token)
        self.lost = asyncio.Event()
        """Set when the lease is gone."""
        self._renewal = asyncio.create_task(self._renew(), name="lease")

    @classmethod
    async def open(
        cls, url: str, lease_seconds: float, wait_seconds: float = 0.0, patience_seconds: float = 20.0
    ) -> Self:
        """Connect, migrate, take the lease.

        Args:
            wait_seconds: how long to wait for a lease that another process holds (a predecessor that was killed).
            patience_seconds: how long to wait, now and before each transaction, for a database that is not there.

        Raises:
            LeaseHeldError: it is still held after that.
            StoreUnavailableError: the database is still not there after that.
            StoreSchemaError: the store was made by a newer release.
            StoreUrlError: the URL names no database that we can use.
        """
        engine = connect(url, lease_seconds, patience_seconds)
        holder = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        give_up = time.monotonic() + wait_seconds

        async def opened() -> Lease | str:
            async with engine.begin() as connection:
                return await connection.run_sync(open_store, holder, lease_seconds)

        try:
            while True:
                taken = await waiting_out(opened, _name(engine), patience_seconds)
                if isinstance(taken, Lease):
                    return cls(engine, taken, lease_seconds, patience_seconds)
                if time.monotonic() >= give_up:
                    raise LeaseHeldError(
                        f"the store {_name(engine)} is held by orchestrator {taken}; "
                        "stop that one, or give this one a store of its own"
                    )
                await asyncio.sleep(_POLL_SECONDS)
        except BaseException:
            await engine.dispose()
            raise

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that is ours: it fails when the lease is not, and excludes every other one that writes.

        Raises:
            LeaseLostError: another orchestrator has taken over.
            StoreUnavailableError: the database is not there; nothing was written, unless the error says otherwise.
        """
        give_up = time.monotonic() + self._patience_seconds
        async with self._turn:
            # Who has waited for another's turn as long as for an outage asks once more.
            connection = await waiting_out(self._begun, self.name, give_up - time.monotonic())
            committing = False
            try:
                yield connection
                committing = True
                await connection.commit()
            except DBAPIError as error:
                self._tell(error, committing)
                raise
            finally:
                await _closed(connection)

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that only reads, from one snapshot.

        Raises:
            StoreUnavailableError: the database is not there.
        """
        connection = await waiting_out(self._begun_reading, self.name, self._patience_seconds)
        try:
            yield connection
        except DBAPIError as error:
            self._tell(error)
            raise
        finally:
            await _closed(connection)

    async def settled(self) -> None:
        """Return once no transaction of ours is under way, not even at a server that could not answer its commit: what is
        read from then on says whether it was done.
        """
        async with self.writing():
            pass

    async def close(self) -> None:
        """Give the lease back and disconnect."""
        self._renewal.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._renewal
        try:
            async with self._engine.begin() as connection:
                await connection.run_sync(lease.give_back, self._ours)
        except DBAPIError as error:
            logger.warning("could not give the lease back: it expires by itself", error=str(error))
        await self._engine.dispose()

    async def _begun(self) -> AsyncConnection:
        connection = await self._engine.connect()
        try:
            await connection.begin()
            await connection.run_sync(lease.check, self._ours)
        except BaseException as error:
            if isinstance(error, LeaseLostError):
                self.lost.set()
            await _closed(connection)
            raise
        return connection

    async def _begun_reading(self) -> AsyncConnection:
        connection = await self._engine.connect()
        try:
            await connection.execution_options(**reading_options(self._engine))
            await connection.begin()
        except BaseException:
            await _closed(connection)
            raise
        return connection

    def _tell(self, error: DBAPIError, committing: bool = False) -> None:
        """Raise what an outage is for our callers."""
        outage = outage_of(error)
        if outage is not None:
            raise StoreUnavailableError(self.name, outage, error, committing) from error

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._lease_seconds / 3)
            try:
                async with self._turn, self._engine.begin() as connection:
                    renewed = await connection.run_sync(lease.renew, self._ours, self._lease_seconds)
            except ProgrammingError as error:
                # Its tables are gone: what the server has there now is another database, in which we hold nothing.
                logger.error("the store is not the one that was opened", token=self.fence.token, error=str(error))
                self.lost.set()
                return
            except (DBAPIError, PoolTimeoutError) as error:
                # Tried again at the next turn; until another process takes it the lease stays ours.
                logger.warning("could not renew the lease", error=str(error))
                continue
            if not renewed:
                logger.error("lease lost", token=self.fence.token)
                self.lost.set()
                return


async def _closed(connection: AsyncConnection) -> None:
    """Roll back what is not committed, and return the connection, also when our task is being cancelled."""

    async def close() -> None:
        try:
            await connection.close()
        except DBAPIError as error:
            # What cannot be rolled back any more is not committed either.
            logger.warning("a connection to the store was lost", error=str(error))

    await asyncio.shield(asyncio.ensure_future(close()))


def _name(engine: AsyncEngine) -> str:
    return engine.url.render_as_string(hide_password=True)
