"""Stores on both back ends: SQLite in a file of the test's own, PostgreSQL in a server that the session starts."""

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "harness"))

from storage.postgres import PostgresServer, binaries
from troupe_orchestrator.store.database import Database

NewStore = Callable[[], str]


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server; every test that needs a store there makes a database of its own."""
    found = binaries()
    if found is None:
        pytest.skip("PostgreSQL is not installed: `make postgres` installs it from the distribution's packages")
    server = PostgresServer(found)
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty store, on each back end in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/troupe.db"
    return request.getfixturevalue("postgres").new_database()


@pytest.fixture
async def database(store_url: str) -> AsyncIterator[Database]:
    """A store of the test's own, open."""
    opened = await Database.open(store_url, lease_seconds=5)
    yield opened
    await opened.close()
