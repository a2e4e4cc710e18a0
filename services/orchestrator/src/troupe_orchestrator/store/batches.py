"""Sealed batches: what each policy was trained on, by the number of its update. The log that learners are replayed from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from troupe_orchestrator.store import schema
from troupe_orchestrator.store.database import Database

_TABLE = schema.batches.c
_NOT_TRAINED = ("rolling", "sealed")


class BatchCollectedError(RuntimeError):
    """A replay needs a batch that retention has collected."""


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """One policy's sealed batch."""

    policy_id: str
    update: int
    """Number of this policy's update in the run, from 1."""
    digest: str
    """SHA-256, hex."""
    file: str
    sequences: int
    optimization: dict[str, Any]
    """Fields of troupe.v1.Optimization, so that a replay does the same."""


async def last_update(database: Database, run_id: str, policy_id: str) -> int:
    """Number of the newest update of a policy that a sealed step has, 0 if none has."""
    query = select(func.max(_TABLE.update_number)).where(_TABLE.run_id == run_id, _TABLE.policy_id == policy_id)
    async with database.reading() as connection:
        return await connection.scalar(query) or 0


async def batches_after(database: Database, run_id: str, policy_id: str, update: int) -> list[BatchRecord]:
    """Batches of a policy after an update, in order: what a learner that has applied so many still lacks.

    Raises:
        BatchCollectedError: one of them is no longer there.
    """
    query = (
        select(schema.batches)
        .where(_TABLE.run_id == run_id, _TABLE.policy_id == policy_id, _TABLE.update_number > update)
        .order_by(_TABLE.update_number)
    )
    async with database.reading() as connection:
        rows = (await connection.execute(query)).all()
    gone = [row.update_number for row in rows if row.collected]
    if gone:
        raise BatchCollectedError(
            f"updates {gone[0]} to {gone[-1]} of policy {policy_id} in run {run_id} were collected, since a checkpoint "
            f"after them was kept: restore the learner from one with at least {gone[-1]} updates"
        )
    return [_batch(row) for row in rows]


async def batches_between(
    database: Database, run_id: str, policy_id: str, after_step: int, until_step: int
) -> list[BatchRecord]:
    """Batches of a policy from the step after one to another one, in order.

    Raises:
        BatchCollectedError: one of them is no longer there.
    """
    query = (
        select(schema.batches)
        .where(
            _TABLE.run_id == run_id,
            _TABLE.policy_id == policy_id,
            _TABLE.step.between(after_step + 1, until_step),
        )
        .order_by(_TABLE.update_number)
    )
    async with database.reading() as connection:
        rows = (await connection.execute(query)).all()
    for row in rows:
        if row.collected:
            raise BatchCollectedError(
                f"the batch of update {row.update_number} of policy {policy_id} in run {run_id} was collected"
            )
    return [_batch(row) for row in rows]


async def sealed_digests(database: Database, run_id: str, policy_id: str, after: int = 0) -> tuple[str, ...]:
    """Digests of a policy's updates after one of them, in order; also of those whose batch is collected."""
    query = (
        select(_TABLE.digest)
        .where(_TABLE.run_id == run_id, _TABLE.policy_id == policy_id, _TABLE.update_number > after)
        .order_by(_TABLE.update_number)
    )
    async with database.reading() as connection:
        return tuple(await connection.scalars(query))


async def get_batch(database: Database, run_id: str, policy_id: str, update: int) -> BatchRecord | None:
    """The batch of one update; None where none is sealed.

    Raises:
        BatchCollectedError: it is no longer there.
    """
    query = select(schema.batches).where(
        _TABLE.run_id == run_id, _TABLE.policy_id == policy_id, _TABLE.update_number == update
    )
    async with database.reading() as connection:
        row = (await connection.execute(query)).first()
    if row is None:
        return None
    if row.collected:
        raise BatchCollectedError(
            f"the batch of update {update} of policy {policy_id} in run {run_id} was collected, since a checkpoint after "
            f"it was kept: restore the learner from one with at least {update} updates"
        )
    return _batch(row)


async def first_collected(database: Database, run_id: str, after: int) -> int | None:
    """The first step after another one of which a batch was collected; None where all are there."""
    query = (
        select(_TABLE.step)
        .where(_TABLE.run_id == run_id, _TABLE.collected, _TABLE.step > after)
        .order_by(_TABLE.step)
        .limit(1)
    )
    async with database.reading() as connection:
        return await connection.scalar(query)


async def trained_updates(database: Database, run_id: str) -> dict[str, int]:
    """Policy id to the number of its newest update that its learner has applied."""
    query = (
        select(_TABLE.policy_id, func.max(_TABLE.update_number).label("newest"))
        .join(schema.steps, (schema.steps.c.run_id == _TABLE.run_id) & (schema.steps.c.step == _TABLE.step))
        .where(_TABLE.run_id == run_id, schema.steps.c.state.not_in(_NOT_TRAINED))
        .group_by(_TABLE.policy_id)
    )
    async with database.reading() as connection:
        return {row.policy_id: row.newest for row in await connection.execute(query)}


async def updated_policies(database: Database, run_id: str, first_step: int, last_step: int) -> frozenset[str]:
    """Policies with a sealed batch in these steps."""
    query = (
        select(_TABLE.policy_id).distinct().where(_TABLE.run_id == run_id, _TABLE.step.between(first_step, last_step))
    )
    async with database.reading() as connection:
        return frozenset(await connection.scalars(query))


async def add_batches(
    connection: AsyncConnection, run_id: str, step: int, batches: Sequence[BatchRecord], sizes: Sequence[int]
) -> None:
    """List the batches of a step that is being sealed, within its transaction."""
    rows = [
        {
            "run_id": run_id,
            "policy_id": batch.policy_id,
            "update_number": batch.update,
            "step": step,
            "digest": batch.digest,
            "file": batch.file,
            "bytes": size,
            "sequences": batch.sequences,
            "optimization": batch.optimization,
            "collected": False,
        }
        for batch, size in zip(batches, sizes, strict=True)
    ]
    if rows:
        await connection.execute(insert(schema.batches), rows)


async def batches_of_step(connection: AsyncConnection, run_id: str, step: int) -> tuple[BatchRecord, ...]:
    """The batches of a step, by policy."""
    query = select(schema.batches).where(_TABLE.run_id == run_id, _TABLE.step == step).order_by(_TABLE.policy_id)
    return tuple(_batch(row) for row in await connection.execute(query))


def _batch(row: Any) -> BatchRecord:
    return BatchRecord(
        policy_id=row.policy_id,
        update=row.update_number,
        digest=row.digest,
        file=row.file,
        sequences=row.sequences,
        optimization=row.optimization,
    )
