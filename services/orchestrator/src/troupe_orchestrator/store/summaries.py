"""Runs as a list shows them: each with its newest step and what its files take, all in one query."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select

from troupe_orchestrator.store import schema
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.runs import RunRecord, run_record
from troupe_orchestrator.store.steps import StepState


@dataclass(frozen=True, slots=True)
class DiskUse:
    """Bytes of the files of a run that are listed and not collected. Measured when each was listed."""

    trees: int
    batches: int
    checkpoints: int
    journal: int


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run, how far it is, and what it takes."""

    run: RunRecord
    step: int
    """The newest step, 0 before the first."""
    step_state: StepState | None
    disk: DiskUse

    @property
    def committed_steps(self) -> int:
        """Number of the newest committed step: a step begins only after the one before is committed."""
        return self.step if self.step_state in (None, StepState.COMMITTED) else self.step - 1


async def get_summary(database: Database, run_id: str) -> RunSummary | None:
    """One run."""
    async with database.reading() as connection:
        row = (await connection.execute(_query().where(schema.runs.c.run_id == run_id))).first()
    return None if row is None else _summary(row)


async def list_summaries(database: Database, limit: int, before: tuple[float, str] | None = None) -> list[RunSummary]:
    """Newest first, at most `limit`; `before` is (created_at, run_id) of the last one of the page before."""
    table = schema.runs.c
    query = _query().order_by(table.created_at.desc(), table.run_id.desc()).limit(limit)
    if before is not None:
        created_at, run_id = before
        query = query.where(
            (table.created_at < created_at) | ((table.created_at == created_at) & (table.run_id < run_id))
        )
    async with database.reading() as connection:
        return [_summary(row) for row in await connection.execute(query)]


def _query() -> Select[Any]:
    run_id = schema.runs.c.run_id
    steps = schema.steps.alias().c
    newest = select(func.max(steps.step)).where(steps.run_id == run_id).correlate(schema.runs).scalar_subquery()
    sums = {
        "tree_bytes": _bytes(
            schema.tree_files.c.bytes, schema.tree_files.c.scope == run_id, ~schema.tree_files.c.collected
        ),
        "batch_bytes": _bytes(schema.batches.c.bytes, schema.batches.c.run_id == run_id, ~schema.batches.c.collected),
        "checkpoint_bytes": _bytes(schema.checkpoints.c.bytes, schema.checkpoints.c.run_id == run_id),
        "journal_bytes": _bytes(schema.groups.c.bytes, schema.groups.c.run_id == run_id),
    }
    newest_step = schema.runs.outerjoin(
        schema.steps, (schema.steps.c.run_id == run_id) & (schema.steps.c.step == newest)
    )
    return select(
        schema.runs,
        schema.steps.c.step,
        schema.steps.c.state.label("step_state"),
        *(column.label(name) for name, column in sums.items()),
    ).select_from(newest_step)


def _bytes(column: ColumnElement[int], *of: ColumnElement[bool]) -> ColumnElement[int]:
    return select(func.coalesce(func.sum(column), 0)).where(*of).correlate(schema.runs).scalar_subquery()


def _summary(row: Any) -> RunSummary:
    return RunSummary(
        run=run_record(row),
        step=row.step or 0,
        step_state=None if row.step_state is None else StepState(row.step_state),
        disk=DiskUse(
            trees=int(row.tree_bytes),
            batches=int(row.batch_bytes),
            checkpoints=int(row.checkpoint_bytes),
            journal=int(row.journal_bytes),
        ),
    )
