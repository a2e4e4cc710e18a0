"""Connects to the store's SQL: what differs between SQLite and PostgreSQL as back ends.

On both, a transaction that writes excludes every other one from its start on (SQLite: BEGIN IMMEDIATE; PostgreSQL: a lock
on the lease's row, taken by `lease.check`), so what it reads before it writes stays true. One that only reads sees one
snapshot.
"""

import sqlite3
from functools import partial
from typing import Any

from sqlalchemy import Connection, event, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg"}
_LOCK_SECONDS = 5.0
"""How long one statement waits for another's lock at most; its transaction is then tried again."""


class StoreUrlError(ValueError):
    """The store's URL names no database that we can use."""


def connect(url: str, lease_seconds: float, patience_seconds: float) -> AsyncEngine:
    """An engine for the database of `url`; nothing is connected yet.

    Args:
        lease_seconds: after which PostgreSQL ends a transaction whose process does nothing, e.g. since it is stopped.
        patience_seconds: how long its user waits for it in all.

    Raises:
        StoreUrlError: the URL is none, or of another database.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise StoreUrlError(f"TROUPE_STORE_URL {url!r} is not a URL: give postgresql://user@host/database") from error
    backend = parsed.get_backend_name()
    if backend not in _DRIVERS:
        raise StoreUrlError(
            f"the store's URL is one of {backend}: give sqlite:///file or postgresql://user@host/database"
        )
    parsed = parsed.set(drivername=_DRIVERS[backend])
    lock_milliseconds = int(min(_LOCK_SECONDS, patience_seconds) * 1000)
    if backend == "sqlite":
        engine = create_async_engine(parsed, hide_parameters=True, connect_args={"factory": _RollsBack})
        event.listen(engine.sync_engine, "connect", partial(_configure_sqlite, lock_milliseconds))
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
        return engine
    # Errors are told to clients and logged: their parameters may be answers.
    # A pooled connection may be of a server that has been restarted since: it is tried before it is used.
    return create_async_engine(
        parsed,
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args=_postgresql_arguments(lease_seconds, lock_milliseconds),
    )


class _RollsBack(sqlite3.Connection):
    """A connection that ends its transaction when it is closed.

    SQLite keeps a closed connection, and its locks, until the last cursor of it is gone; the traceback of a cancelled task
    holds one, and the store would be locked for as long as somebody holds that. (A server of PostgreSQL ends it itself.)
    """

    def close(self) -> None:
        if self.in_transaction:
            self.rollback()
        super().close()


def reading_options(engine: AsyncEngine) -> dict[str, Any]:
    """Execution options of a transaction that only reads."""
    if engine.dialect.name == "sqlite":
        return {"troupe_read_only": True}
    return {"postgresql_readonly": True, "isolation_level": "REPEATABLE READ"}


def _postgresql_arguments(lease_seconds: float, lock_milliseconds: int) -> dict[str, Any]:
    settings = {
        "lock_timeout": lock_milliseconds,
        "idle_in_transaction_session_timeout": int(lease_seconds * 1000),
        # What is committed is acted upon: a server that forgets it in a crash would have us train on what is not on record.
        "synchronous_commit": "on",
    }
    return {
        "options": " ".join(f"-c {name}={value}" for name, value in settings.items()),
        # A server that fell silent is noticed in half a minute.
        "connect_timeout": 5,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 30_000,
    }


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads before it writes must lock first: a deferred one fails when another wrote in between.
    read_only = connection.get_execution_options().get("troupe_read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _configure_sqlite(lock_milliseconds: int, connection: object, _record: object) -> None:
    connection.isolation_level = None  # type: ignore[attr-defined]  # the driver begins nothing by itself
    cursor = connection.cursor()  # type: ignore[attr-defined]
    # First, since changing the journal's mode takes a lock too.
    cursor.execute(f"PRAGMA busy_timeout={lock_milliseconds}")
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()
