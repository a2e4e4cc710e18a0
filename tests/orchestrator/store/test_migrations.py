"""The schema moves forward and takes every row along. On SQLite and PostgreSQL."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, MetaData, insert, text
from sqlalchemy.ext.asyncio import AsyncEngine
from troupe_orchestrator.store import evals, schema
from troupe_orchestrator.store.batches import BatchRecord, batches_after, batches_between
from troupe_orchestrator.store.checkpoints import list_checkpoints
from troupe_orchestrator.store.database import Database, LeaseHeldError
from troupe_orchestrator.store.drops import quarantined_tasks
from troupe_orchestrator.store.engine import connect
from troupe_orchestrator.store.executions import StoredExecution, find_execution
from troupe_orchestrator.store.journal import JournalledGroup, journalled_groups
from troupe_orchestrator.store.opening import StoreSchemaError, migrate
from troupe_orchestrator.store.run_events import read_events
from troupe_orchestrator.store.step_outcomes import step_metrics
from troupe_orchestrator.store.steps import committed_steps
from troupe_orchestrator.store.summaries import get_summary

BATCH = {"policy_id": "p", "update": 1, "digest": "00", "file": "/b1", "sequences": 2, "optimization": {"rate": 0.1}}
STEP = {"run_id": "r", "queue": {"seed": 1}, "versions": {"p": "a:0"}, "metrics": {"success": 0.5}}
# Rows as the first schema has them, in the order in which they refer to each other.
FIRST_ROWS: dict[str, list[dict[str, Any]]] = {
    "lease": [{"id": 1, "store_id": "s", "token": 7, "holder": "gone", "expires_at": 0.0}],
    "runs": [
        {
            "run_id": "r",
            "state": "paused",
            "reason": "",
            "config": "c",
            "provenance": {},
            "total_steps": 3,
            "folder": "/r",
        }
        | {"created_at": 1.0, "ended_at": None}
    ],
    "steps": [
        STEP | {"step": 1, "state": "committed", "task_ids": ["t1"], "batches": [BATCH]},
        STEP | {"step": 2, "state": "sealed", "task_ids": ["t2"], "batches": [BATCH | {"update": 2, "file": "/b2"}]},
    ],
    "groups": [{"run_id": "r", "step": 3, "task_id": "t", "file": "/g", "versions": {"p": "a:2"}}],
    "drops": [{"run_id": "r", "task_id": "t9", "count": 3, "quarantined": True, "reason": "down"}],
    "checkpoints": [{"run_id": "r", "step": 1, "manifest": {"p": {"uri": "/c", "update": 1, "version": "a:1"}}}],
    "events": [{"run_id": "r", "event_id": 1, "payload": b"one"}],
    "executions": [
        {"execution_id": execution, "scope": "r", "step": step, "file": f"/trees{step}"}
        for execution, step in (("aa01", 1), ("aa02", 1), ("bb01", 2))
    ],
    "eval_jobs": [
        {"job_id": "j", "state": "succeeded", "reason": "", "request": b"", "dataset_file": "/d", "problems": 1}
        | {"errors": [], "versions": {"designer": "a:0"}, "summary": b"s", "created_at": 1.0, "ended_at": 2.0}
    ],
    "eval_items": [
        {"job_id": "j", "problem_id": "q", "sample": 0, "family": "f", "parseable": True, "payload": b"item"}
    ],
}


@pytest.fixture
async def engine(store_url: str) -> AsyncIterator[AsyncEngine]:
    engine = connect(store_url, 30.0, 20.0)
    yield engine
    await engine.dispose()


def first_schema(connection: Connection) -> None:
    """A store as the first release left it."""
    migrate(connection, "0001")
    first = MetaData()
    first.reflect(connection)
    for table, rows in FIRST_ROWS.items():
        columns = {**first.tables[table].c, **schema.metadata.tables[table].c}
        # JSON is text to SQLite: the types of columns that have them still are those of the schema.
        reflected = first.tables[table]
        for column in reflected.c:
            column.type = columns[column.name].type
        connection.execute(insert(reflected), rows)


async def test_a_store_of_the_first_schema_keeps_every_row(store_url: str, engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(first_schema)
    database = await Database.open(store_url, 30.0)
    assert (database.fence.store_id, database.fence.token) == ("s", 8)
    assert await committed_steps(database, "r") == 1
    assert await step_metrics(database, "r", 1) == {"success": 0.5}
    first, second = await batches_between(database, "r", "p", 0, 2)
    assert first == BatchRecord("p", 1, "00", "/b1", 2, {"rate": 0.1})
    assert await batches_after(database, "r", "p", 1) == [second]
    summary = await get_summary(database, "r")
    assert summary is not None
    assert (summary.step, summary.committed_steps) == (2, 1)
    assert await list_checkpoints(database, "r") == [(1, FIRST_ROWS["checkpoints"][0]["manifest"])]
    assert await read_events(database, "r", 0) == [(1, b"one")]
    assert await quarantined_tasks(database, "r") == {"t9"}
    assert await journalled_groups(database, "r", 3) == {"t": JournalledGroup("/g", {"p": "a:2"}, "")}
    assert await find_execution(database, "bb") == [StoredExecution("bb01", "r", 2, "/trees2", False, "")]
    assert len(await find_execution(database, "aa")) == 2
    job = await evals.get_job(database, "j")
    assert job is not None
    assert (job.state, job.summary) == ("succeeded", b"s")
    assert [item.payload for item in await evals.list_items(database, "j")] == [b"item"]
    await database.close()


async def test_the_migrations_make_what_the_schema_says(store_url: str, engine: AsyncEngine) -> None:
    def differences(connection: Connection) -> Any:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return compare_metadata(context, schema.metadata)

    async with engine.begin() as connection:
        await connection.run_sync(migrate)
        assert await connection.run_sync(differences) == []


async def test_a_store_that_another_orchestrator_holds_is_not_migrated(store_url: str, engine: AsyncEngine) -> None:
    def held(connection: Connection) -> None:
        first_schema(connection)
        connection.execute(text("UPDATE lease SET expires_at = 1e12"))

    def revision(connection: Connection) -> str | None:
        return MigrationContext.configure(connection).get_current_revision()

    async with engine.begin() as connection:
        await connection.run_sync(held)
    with pytest.raises(LeaseHeldError, match="held by orchestrator gone"):
        await Database.open(store_url, 30.0)
    async with engine.begin() as connection:
        assert await connection.run_sync(revision) == "0001"


async def test_a_store_of_a_newer_release_is_refused_and_left_as_it_is(store_url: str, engine: AsyncEngine) -> None:
    await (await Database.open(store_url, 30.0)).close()
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreSchemaError, match="has schema 9999, this release knows up to"):
        await Database.open(store_url, 30.0)


async def test_a_migration_that_fails_leaves_the_store_as_it_was(
    store_url: str, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(first_schema)
        # What the second schema is to make is there already: its first half is done when it finds out.
        await connection.execute(text("CREATE TABLE tree_files (file_id INTEGER)"))
    with pytest.raises(Exception, match="tree_files"):
        await Database.open(store_url, 30.0)
    async with engine.begin() as connection:
        assert (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar() == "0001"
        assert (await connection.execute(text("SELECT batches FROM steps"))).first() is not None
