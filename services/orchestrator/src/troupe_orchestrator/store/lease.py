"""The lease: whose store it is. Its token grows with every take-over and fences off whoever held it before.

Every transaction that writes checks the token first and holds the lease's row until its end, so a take-over waits for it or
comes first; there is no moment between check and commit. Time is the database's, so clocks of two machines need not agree.
"""

import uuid
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Float, insert, select, update
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from troupe_contracts.errors import FailedPrecondition

from troupe_orchestrator.store.schema import lease


class LeaseHeldError(RuntimeError):
    """Another orchestrator owns the store."""


class LeaseLostError(FailedPrecondition):
    """This orchestrator no longer owns the store: it must stop writing."""

    def __init__(self, had: int, now: int | None) -> None:
        super().__init__("store", f"its lease went from {had} to {now}: another orchestrator owns it, ask that one")


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease that is ours."""

    store_id: str
    token: int


class database_clock(FunctionElement[float]):  # noqa: N801  # named as SQL functions are
    """Seconds since the epoch by the database's clock, now and not when the transaction began."""

    type = Float()
    inherit_cache = True


@compiles(database_clock, "sqlite")
def _sqlite_clock(element: database_clock, compiler: Any, **_: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(database_clock, "postgresql")
def _postgresql_clock(element: database_clock, compiler: Any, **_: Any) -> str:
    return "extract(epoch from clock_timestamp())::float"


def holder_of(connection: Connection) -> str | None:
    """Who holds a lease that has not expired; its row is locked until the transaction ends."""
    row = connection.execute(
        select(lease.c.holder).where(lease.c.expires_at > database_clock()).with_for_update()
    ).first()
    return None if row is None else str(row.holder)


def take(connection: Connection, holder: str, seconds: float) -> Lease:
    """Take a lease that nobody holds. The caller has asked `holder_of` in the same transaction."""
    expires_at = database_clock() + seconds
    row = connection.execute(select(lease.c.store_id, lease.c.token).with_for_update()).first()
    if row is None:
        ours = Lease(uuid.uuid4().hex, 1)
        connection.execute(
            insert(lease).values(id=1, store_id=ours.store_id, token=ours.token, holder=holder, expires_at=expires_at)
        )
    else:
        ours = Lease(row.store_id, row.token + 1)
        connection.execute(update(lease).values(token=ours.token, holder=holder, expires_at=expires_at))
    return ours


def check(connection: Connection, ours: Lease) -> None:
    """Make sure that the lease is ours until this transaction ends.

    Raises:
        LeaseLostError: another orchestrator has taken over.
    """
    # Locked: read without a lock, the token could be replaced before what we write is committed.
    token = connection.scalar(select(lease.c.token).with_for_update())
    if token != ours.token:
        raise LeaseLostError(ours.token, token)


def renew(connection: Connection, ours: Lease, seconds: float) -> bool:
    """Hold on for so many more seconds; false when the lease is another's."""
    renewed = connection.execute(
        update(lease).where(lease.c.token == ours.token).values(expires_at=database_clock() + seconds)
    )
    return renewed.rowcount == 1


def give_back(connection: Connection, ours: Lease) -> None:
    """Let the next orchestrator take the lease at once."""
    connection.execute(update(lease).where(lease.c.token == ours.token).values(expires_at=0.0))
