"""Eval jobs, their finished items and their events. Every function is one transaction.

An item and the event that tells of it are stored together, so that whoever asks for the events after a number is told of
each item once.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Integer, case, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from troupe_orchestrator.store import schema
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.executions import TreeFile, add_tree_file
from troupe_orchestrator.store.files import bytes_on_disk


class EvalState(StrEnum):
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class EvalRecord:
    """One job. `request` is the CreateEvalJobRequest without the data set's bytes; `summary` an EvalSummary; `target` an
    EvalTarget with checkpoints resolved.
    """

    job_id: str
    state: EvalState
    reason: str
    request: bytes
    dataset_file: str
    problems: int
    errors: tuple[tuple[str, int, str], ...]
    versions: dict[str, str]
    summary: bytes | None
    created_at: float
    ended_at: float | None
    target: bytes = b""
    serving: str = "{}"
    """The ServingConfig that all its items are made under, JSON."""
    seconds: float = 0.0
    """In which items were run, over all restarts."""
    run_id: str = ""
    """The run whose validation it is; empty for a client's job."""
    step: int = 0
    votes: float = 0.0
    """Of an item of mode MAJORITY, the mean where items differ."""


@dataclass(frozen=True, slots=True)
class ItemRecord:
    """One finished item; `payload` is an EvalItem."""

    problem_id: str
    sample: int
    family: str
    parseable: bool
    faulted: bool
    """It ended in a fault of ours: it is no result, and is run again when the job is resumed."""
    payload: bytes


@dataclass(frozen=True, slots=True)
class ItemCounts:
    """How many items of a job have ended, and how many of those in faults of ours."""

    done: int
    faulted: int


async def create_job(database: Database, record: EvalRecord, event: tuple[int, bytes]) -> None:
    """Add a job with its first event."""
    async with database.writing() as connection:
        await connection.execute(
            insert(schema.eval_jobs).values(
                job_id=record.job_id,
                state=record.state,
                reason=record.reason,
                request=record.request,
                dataset_file=record.dataset_file,
                problems=record.problems,
                errors=[list(error) for error in record.errors],
                versions=record.versions,
                summary=record.summary,
                created_at=record.created_at,
                ended_at=record.ended_at,
                target=record.target,
                serving=record.serving,
                seconds=record.seconds,
                run_id=record.run_id,
                step=record.step,
                votes=record.votes,
            )
        )
        await _write_event(connection, record.job_id, event)


async def get_job(database: Database, job_id: str) -> EvalRecord | None:
    async with database.reading() as connection:
        row = (await connection.execute(select(schema.eval_jobs).where(schema.eval_jobs.c.job_id == job_id))).first()
    return None if row is None else _job(row)


async def list_jobs(database: Database, limit: int, before: tuple[float, str] | None = None) -> list[EvalRecord]:
    """Newest first; `before` is (created_at, job_id) of the last one of the page before."""
    table = schema.eval_jobs.c
    query = select(schema.eval_jobs).order_by(table.created_at.desc(), table.job_id.desc()).limit(limit)
    if before is not None:
        created_at, job_id = before
        query = query.where(
            (table.created_at < created_at) | ((table.created_at == created_at) & (table.job_id < job_id))
        )
    async with database.reading() as connection:
        return [_job(row) for row in await connection.execute(query)]


async def running_jobs(database: Database) -> list[EvalRecord]:
    """Those that have not ended, oldest first."""
    table = schema.eval_jobs.c
    query = select(schema.eval_jobs).where(table.state == EvalState.RUNNING).order_by(table.created_at, table.job_id)
    async with database.reading() as connection:
        return [_job(row) for row in await connection.execute(query)]


async def list_validations(database: Database, run_id: str) -> list[EvalRecord]:
    """The eval jobs that are validations of a run, by step."""
    query = select(schema.eval_jobs).where(schema.eval_jobs.c.run_id == run_id).order_by(schema.eval_jobs.c.step)
    async with database.reading() as connection:
        return [_job(row) for row in await connection.execute(query)]


async def set_versions(database: Database, job_id: str, versions: dict[str, str]) -> None:
    """Record which policy versions the job's items are made with."""
    async with database.writing() as connection:
        await connection.execute(
            update(schema.eval_jobs).where(schema.eval_jobs.c.job_id == job_id).values(versions=versions)
        )


async def end_job(
    database: Database,
    job_id: str,
    state: EvalState,
    reason: str,
    event: tuple[int, bytes],
    summary: bytes | None = None,
) -> None:
    """Record how a job ended. A summary from before stays where there is no new one."""
    values: dict[str, Any] = {"state": state, "reason": reason, "ended_at": time.time()}
    if summary is not None:
        values["summary"] = summary
    async with database.writing() as connection:
        await connection.execute(update(schema.eval_jobs).where(schema.eval_jobs.c.job_id == job_id).values(**values))
        await _write_event(connection, job_id, event)


async def reopen_job(database: Database, job_id: str, event: tuple[int, bytes], keep_items: bool) -> None:
    """Let an ended job go on: items that are no results are forgotten, or all of them with the versions they had."""
    items = schema.eval_items.c
    forgotten = delete(schema.eval_items).where(items.job_id == job_id)
    values: dict[str, Any] = {"state": EvalState.RUNNING, "reason": "", "ended_at": None}
    if keep_items:
        forgotten = forgotten.where(items.faulted)
    else:
        values |= {"versions": {}, "seconds": 0.0, "summary": None}
    async with database.writing() as connection:
        await connection.execute(forgotten)
        await connection.execute(update(schema.eval_jobs).where(schema.eval_jobs.c.job_id == job_id).values(**values))
        await _write_event(connection, job_id, event)


async def add_items(
    database: Database,
    job_id: str,
    items: Sequence[ItemRecord],
    trees: TreeFile | None,
    event: tuple[int, bytes],
    seconds: float,
) -> None:
    """Add finished items with the event that tells of them.

    Args:
        trees: file in which their rollouts are; None where all of them ended in faults of ours.
        seconds: for which the job has run in all.
    """
    size = 0 if trees is None else await asyncio.to_thread(bytes_on_disk, trees.path)
    async with database.writing() as connection:
        await connection.execute(
            insert(schema.eval_items),
            [
                {
                    "job_id": job_id,
                    "problem_id": item.problem_id,
                    "sample": item.sample,
                    "family": item.family,
                    "parseable": item.parseable,
                    "faulted": item.faulted,
                    "payload": item.payload,
                }
                for item in items
            ],
        )
        if trees is not None:
            await add_tree_file(connection, job_id, 0, trees, size)
        await connection.execute(
            update(schema.eval_jobs).where(schema.eval_jobs.c.job_id == job_id).values(seconds=seconds)
        )
        await _write_event(connection, job_id, event)


async def read_events(database: Database, job_id: str, after: int, limit: int) -> list[tuple[int, bytes]]:
    """Events after a number, in order."""
    table = schema.eval_events.c
    async with database.reading() as connection:
        rows = await connection.execute(
            select(table.event_id, table.payload)
            .where(table.job_id == job_id, table.event_id > after)
            .order_by(table.event_id)
            .limit(limit)
        )
        return [(row.event_id, row.payload) for row in rows]


async def add_event(database: Database, job_id: str, event: tuple[int, bytes]) -> None:
    """Add an event that is about neither an item nor the job's state."""
    async with database.writing() as connection:
        await _write_event(connection, job_id, event)


async def last_event_id(database: Database, job_id: str) -> int:
    """Number of a job's newest event; 0 without one."""
    async with database.reading() as connection:
        newest = await connection.scalar(
            select(func.max(schema.eval_events.c.event_id)).where(schema.eval_events.c.job_id == job_id)
        )
    return newest or 0


async def list_items(
    database: Database, job_id: str, limit: int | None = None, after: tuple[str, int] | None = None
) -> list[ItemRecord]:
    """By problem and sample; `after` is the last one of the page before."""
    table = schema.eval_items.c
    query = (
        select(schema.eval_items).where(table.job_id == job_id).order_by(table.problem_id, table.sample).limit(limit)
    )
    if after is not None:
        problem_id, sample = after
        query = query.where(
            (table.problem_id > problem_id) | ((table.problem_id == problem_id) & (table.sample > sample))
        )
    async with database.reading() as connection:
        return [
            ItemRecord(row.problem_id, row.sample, row.family, row.parseable, row.faulted, row.payload)
            for row in await connection.execute(query)
        ]


async def count_items(database: Database, job_id: str) -> ItemCounts:
    """How many items of a job have ended."""
    return (await count_items_of(database, [job_id]))[job_id]


async def count_items_of(database: Database, job_ids: Sequence[str]) -> dict[str, ItemCounts]:
    """How many items of each job have ended, in one query."""
    items = schema.eval_items.c
    faults = func.sum(case((items.faulted, 1), else_=0)).cast(Integer)
    query = select(items.job_id, func.count(), faults).where(items.job_id.in_(job_ids)).group_by(items.job_id)
    async with database.reading() as connection:
        counted = {job_id: ItemCounts(done, faulted) for job_id, done, faulted in await connection.execute(query)}
    return {job_id: counted.get(job_id, ItemCounts(0, 0)) for job_id in job_ids}


async def _write_event(connection: AsyncConnection, job_id: str, event: tuple[int, bytes]) -> None:
    number, payload = event
    await connection.execute(insert(schema.eval_events).values(job_id=job_id, event_id=number, payload=payload))


def _job(row: Any) -> EvalRecord:
    return EvalRecord(
        job_id=row.job_id,
        state=EvalState(row.state),
        reason=row.reason,
        request=row.request,
        dataset_file=row.dataset_file,
        problems=row.problems,
        errors=tuple((file, line, message) for file, line, message in row.errors),
        versions=row.versions,
        summary=row.summary,
        created_at=row.created_at,
        ended_at=row.ended_at,
        target=row.target,
        serving=row.serving,
        seconds=row.seconds,
        run_id=row.run_id,
        step=row.step,
        votes=row.votes,
    )
