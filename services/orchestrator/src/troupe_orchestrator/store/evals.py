"""Eval jobs and their finished items. Every function is one transaction."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import func, insert, select, update

from troupe_orchestrator.store import schema
from troupe_orchestrator.store.database import Database


class EvalState(StrEnum):
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class EvalRecord:
    """One job. `request` is the CreateEvalJobRequest without the data set's bytes; `summary` an EvalSummary."""

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


@dataclass(frozen=True, slots=True)
class ItemRecord:
    """One finished item; `payload` is an EvalItem."""

    problem_id: str
    sample: int
    family: str
    parseable: bool
    payload: bytes


async def create_job(database: Database, record: EvalRecord) -> None:
    """Add a job."""
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
            )
        )


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


async def set_versions(database: Database, job_id: str, versions: dict[str, str]) -> None:
    """Record which policy versions the job's items are made with."""
    async with database.writing() as connection:
        await connection.execute(
            update(schema.eval_jobs).where(schema.eval_jobs.c.job_id == job_id).values(versions=versions)
        )


async def end_job(database: Database, job_id: str, state: EvalState, reason: str, summary: bytes | None = None) -> None:
    """Record how a job ended."""
    async with database.writing() as connection:
        await connection.execute(
            update(schema.eval_jobs)
            .where(schema.eval_jobs.c.job_id == job_id)
            .values(state=state, reason=reason, summary=summary, ended_at=time.time())
        )


async def add_items(database: Database, job_id: str, items: Sequence[ItemRecord]) -> None:
    """Add finished items."""
    if not items:
        return
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
                    "payload": item.payload,
                }
                for item in items
            ],
        )


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
            ItemRecord(row.problem_id, row.sample, row.family, row.parseable, row.payload)
            for row in await connection.execute(query)
        ]


async def count_items(database: Database, job_id: str) -> int:
    async with database.reading() as connection:
        count = await connection.scalar(
            select(func.count()).select_from(schema.eval_items).where(schema.eval_items.c.job_id == job_id)
        )
    return count or 0


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
    )
