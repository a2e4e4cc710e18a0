"""Opens a store in one transaction: bring the schema up to date and take the lease, or do neither.

Orchestrators that start together come one after another (SQLite: BEGIN IMMEDIATE; PostgreSQL: an advisory lock, since an
empty database has no row to lock). A schema is never changed under an orchestrator that holds the lease.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from troupe_orchestrator.store import lease, schema
from troupe_orchestrator.store.lease import Lease

_MIGRATIONS = Path(__file__).parent / "migrations"
_ADVISORY_LOCK = 0x74726F757065
"""`troupe`, as a number: the name of the lock in PostgreSQL."""


class StoreSchemaError(RuntimeError):
    """The store was made by a newer release."""


def open_store(connection: Connection, holder: str, seconds: float) -> Lease | str:
    """The lease, on an up-to-date schema; or who holds it.

    Raises:
        StoreSchemaError: this release does not know the store's schema.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
    if inspect(connection).has_table(schema.lease.name):
        held_by = lease.holder_of(connection)
        if held_by is not None:
            return held_by
    migrate(connection)
    return lease.take(connection, holder, seconds)


def migrate(connection: Connection, revision: str = "head") -> None:
    """Bring the schema up to a revision.

    Raises:
        StoreSchemaError: the store is at a revision that this release does not have.
    """
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    current = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if current is not None and current not in known:
        raise StoreSchemaError(
            f"the store has schema {current}, this release knows up to {max(known)}: start a release that is as new, "
            "or give this one a store of its own"
        )
    command.upgrade(config, revision)
