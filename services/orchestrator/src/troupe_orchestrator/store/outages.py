"""When the store's SQL is not there: locked, full, restarted, unreachable. One typed error, and waiting for a while first.

Only the *beginning* of a transaction is tried again: nothing has happened yet. What fails later is undone by the database,
except a COMMIT whose answer got lost: then nobody knows. Neither is repeated here. The caller reads the store anew and goes
on from what it says, which every transition of a step allows (`runs.TRANSITIONS`).
"""

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from troupe_contracts.errors import Unavailable

logger = structlog.get_logger()
Result = TypeVar("Result")

_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Outage:
    """What is wrong, and what to do about it."""

    what: str
    remedy: str


_LOCKED = Outage("is locked", "end the process that holds it")
_FULL = Outage("has no space left", "free space on its file system")
_AWAY = Outage("cannot be reached", "start its server, or correct TROUPE_STORE_URL")
_BROKEN = Outage("cannot be read or written", "check its disk and its permissions")
_BUSY = Outage("is overloaded", "lower the load, or raise its limits")
_ENDED = Outage("ended the transaction", "if it was not restarted, look at its log")

# Primary result codes of SQLite.
_SQLITE: dict[int, Outage] = {
    sqlite3.SQLITE_BUSY: _LOCKED,
    sqlite3.SQLITE_LOCKED: _LOCKED,
    sqlite3.SQLITE_PROTOCOL: _LOCKED,
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_IOERR: _BROKEN,
    sqlite3.SQLITE_CANTOPEN: _BROKEN,
    sqlite3.SQLITE_READONLY: _BROKEN,
}
# SQLSTATEs of PostgreSQL, the longest prefix first.
_POSTGRESQL: dict[str, Outage] = {
    "53100": _FULL,
    "55P03": _LOCKED,
    "25P03": _ENDED,
    "25006": _BROKEN,
    "53": _BUSY,
    "57P": _ENDED,
    "40": _ENDED,
    "08": _AWAY,
    "58": _BROKEN,
}


class StoreUnavailableError(Unavailable):
    """The store did not answer for longer than we wait. A fault of ours: it ends nothing and rewards nothing."""

    def __init__(self, store: str, outage: Outage, cause: BaseException, committing: bool = False) -> None:
        unknown = "; whether the last change is in it is not known" if committing else ""
        super().__init__(f"the store {store} {outage.what} ({_first_line(cause)}){unknown}: {outage.remedy}")


def outage_of(error: BaseException) -> Outage | None:
    """What an error says about the store; None where it says something about our statement."""
    if isinstance(error, PoolTimeoutError):
        return _BUSY
    if not isinstance(error, DBAPIError):
        return None
    driver = error.orig
    code = getattr(driver, "sqlite_errorcode", None)
    if code is not None:
        return _SQLITE.get(code & 0xFF)
    state = getattr(driver, "sqlstate", None)
    if state is not None:
        return next((outage for prefix, outage in _POSTGRESQL.items() if state.startswith(prefix)), None)
    if error.connection_invalidated:
        return _ENDED
    # No code from the server: there was none to give one. Drivers have kinds of it, as for a connection that took too long.
    return _AWAY if "OperationalError" in {kind.__name__ for kind in type(driver).__mro__} else None


async def waiting_out(begin: Callable[[], Awaitable[Result]], store: str, seconds: float) -> Result:
    """Do what has no effect if it fails, again and again for so many seconds while the store is not there.

    Raises:
        StoreUnavailableError: it is still not there.
    """
    give_up = time.monotonic() + seconds
    pause = _FIRST_PAUSE_SECONDS
    while True:
        try:
            return await begin()
        except (DBAPIError, PoolTimeoutError) as error:
            outage = outage_of(error)
            if outage is None:
                raise
            if time.monotonic() + pause > give_up:
                raise StoreUnavailableError(store, outage, error) from error
            logger.warning("waiting for the store", store=store, error=_first_line(error))
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def _first_line(error: BaseException) -> str:
    cause = error.orig if isinstance(error, DBAPIError) else error
    lines = str(cause).strip().splitlines()
    return lines[0] if lines else type(cause).__name__
