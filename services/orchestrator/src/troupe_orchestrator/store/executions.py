"""In which file each execution is. An execution whose file was collected is still known, so that a trace can say so."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, String, Table, func, literal, select, true
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from troupe_orchestrator.store import schema
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.files import bytes_on_disk


@dataclass(frozen=True, slots=True)
class TreeFile:
    """A file of rollout trees, and the ids of the executions in it."""

    path: str
    executions: Sequence[str]
    digest: str
    """SHA-256, hex."""
    beside: str = ""
    """File that counts with it and goes with it: the timeline of its step."""

    def bytes_on_disk(self) -> int:
        """Of both."""
        return bytes_on_disk(self.path) + (bytes_on_disk(self.beside) if self.beside else 0)


@dataclass(frozen=True, slots=True)
class StoredExecution:
    """Where one execution is."""

    execution_id: str
    scope: str
    """Run id or eval job id."""
    step: int
    path: str
    collected: bool
    """The file is gone, by the retention of its run."""
    digest: str
    """SHA-256 of the file, hex; empty where it was written before digests were kept."""


async def index_executions(database: Database, scope: str, step: int, trees: TreeFile) -> None:
    """Remember in which file each execution is."""
    size = await asyncio.to_thread(bytes_on_disk, trees.path)
    async with database.writing() as connection:
        await add_tree_file(connection, scope, step, trees, size)


async def add_tree_file(connection: AsyncConnection, scope: str, step: int, trees: TreeFile, size: int) -> None:
    """List a file and its executions within a transaction; a file written anew replaces itself."""
    new = _insert(connection, schema.tree_files).values(
        scope=scope, step=step, path=trees.path, bytes=size, collected=False, digest=trees.digest
    )
    file_id = await connection.scalar(
        new.on_conflict_do_update(
            index_elements=["scope", "step", "path"],
            set_={"bytes": size, "collected": False, "digest": trees.digest},
        ).returning(schema.tree_files.c.file_id)
    )
    # All ids in one parameter: ten thousand rows are one statement. SQLite wants a WHERE before an ON CONFLICT.
    listed = select(_each(connection, trees.executions), literal(file_id)).where(true())
    rows = _insert(connection, schema.executions).from_select(["execution_id", "file_id"], listed)
    await connection.execute(
        rows.on_conflict_do_update(index_elements=["execution_id"], set_={"file_id": rows.excluded.file_id})
    )


async def tree_files(database: Database, scope: str) -> dict[str, str]:
    """Path to digest of the files in which the trees of a run or an eval job are, as far as they were not collected."""
    table = schema.tree_files.c
    query = select(table.path, table.digest).where(table.scope == scope, ~table.collected).order_by(table.path)
    async with database.reading() as connection:
        return {row.path: row.digest for row in await connection.execute(query)}


async def find_execution(database: Database, prefix: str) -> list[StoredExecution]:
    """At most two executions whose id begins with `prefix`, hexadecimal digits."""
    column = schema.executions.c.execution_id
    query = (
        select(schema.executions.c.execution_id, schema.tree_files)
        .join(schema.tree_files)
        .where(column >= prefix, column < prefix + "g")
        .order_by(column)
        .limit(2)
    )
    async with database.reading() as connection:
        rows = await connection.execute(query)
        return [
            StoredExecution(row.execution_id, row.scope, row.step, row.path, row.collected, row.digest) for row in rows
        ]


def _insert(connection: AsyncConnection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """An INSERT that can say what to do on a conflict: the two back ends agree on it, the standard does not have it."""
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)


def _each(connection: AsyncConnection, ids: Sequence[str]) -> ColumnElement[str]:
    """A column of these ids."""
    if connection.dialect.name == "sqlite":
        return func.json_each(json.dumps(list(ids))).table_valued("value").c.value
    return func.unnest(literal(list(ids), postgresql.ARRAY(String)))
