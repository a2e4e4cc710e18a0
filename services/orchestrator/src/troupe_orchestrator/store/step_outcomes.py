"""What steps left that later ones, forks and who asks for a run go by: metrics, versions, the task queue, ends of stages."""

from typing import Any

from sqlalchemy import select

from troupe_orchestrator.store import schema
from troupe_orchestrator.store.database import Database


async def stage_ends(database: Database, run_id: str) -> tuple[int, ...]:
    """Steps with which a stage ended before it had all its steps, in order."""
    table = schema.steps.c
    query = select(table.step).where(table.run_id == run_id, table.ends_stage).order_by(table.step)
    async with database.reading() as connection:
        return tuple(await connection.scalars(query))


async def metrics_of_steps(database: Database, run_id: str, first_step: int, last_step: int) -> list[dict[str, float]]:
    """Metrics of the steps from one to another, in order."""
    table = schema.steps.c
    query = (
        select(table.metrics)
        .where(table.run_id == run_id, table.step.between(first_step, last_step))
        .order_by(table.step)
    )
    async with database.reading() as connection:
        return list(await connection.scalars(query))


async def step_metrics(database: Database, run_id: str, step: int) -> dict[str, float]:
    """Metrics of a step, none where the run has no such step."""
    query = select(schema.steps.c.metrics).where(schema.steps.c.run_id == run_id, schema.steps.c.step == step)
    async with database.reading() as connection:
        metrics: dict[str, float] | None = await connection.scalar(query)
    return metrics or {}


async def step_versions(database: Database, run_id: str, step: int) -> dict[str, str]:
    """Policy id to the version that a step has made, or will begin with; none where the run has no such step."""
    query = select(schema.steps.c.versions).where(schema.steps.c.run_id == run_id, schema.steps.c.step == step)
    async with database.reading() as connection:
        versions: dict[str, str] | None = await connection.scalar(query)
    return versions or {}


async def queue_after(database: Database, run_id: str, step: int) -> dict[str, Any] | None:
    """Where the task queue stands after a step; None where the run has no such step."""
    query = select(schema.steps.c.queue).where(schema.steps.c.run_id == run_id, schema.steps.c.step == step)
    async with database.reading() as connection:
        queue: dict[str, Any] | None = await connection.scalar(query)
    return queue
