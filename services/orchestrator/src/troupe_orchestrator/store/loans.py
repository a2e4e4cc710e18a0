"""Weights that an eval job has put into the engines in place of the current ones. Every function is one transaction.

A loan is recorded before the first engine is touched and forgotten when all have their own weights again: after a crash
the store says whose weights may not be what they should be.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, insert, select

from troupe_orchestrator.store import schema
from troupe_orchestrator.store.database import Database


@dataclass(frozen=True, slots=True)
class Loan:
    """What the engines of a policy are to serve again."""

    policy_id: str
    job_id: str
    version: str
    """`lineage:number` that they served."""
    model: str
    """Folder or hub id that they were started from."""


async def record_loans(database: Database, loans: Sequence[Loan]) -> None:
    """Remember what is to be given back."""
    async with database.writing() as connection:
        await connection.execute(
            insert(schema.weight_loans),
            [
                {"policy_id": loan.policy_id, "job_id": loan.job_id, "version": loan.version, "model": loan.model}
                for loan in loans
            ],
        )


async def list_loans(database: Database) -> list[Loan]:
    """All that is still to be given back, by policy."""
    async with database.reading() as connection:
        rows = await connection.execute(select(schema.weight_loans).order_by(schema.weight_loans.c.policy_id))
        return [Loan(row.policy_id, row.job_id, row.version, row.model) for row in rows]


async def forget_loan(database: Database, policy_id: str) -> None:
    """The engines of a policy have their own weights again."""
    async with database.writing() as connection:
        await connection.execute(delete(schema.weight_loans).where(schema.weight_loans.c.policy_id == policy_id))
