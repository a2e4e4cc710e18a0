"""What objects of a Kubernetes API have asked for: whose a run or a job is, and how far its object was carried out.

A row is written before what it asks for is made, under the id that this will have (the object's uid). So whatever an
orchestrator that was killed had made is known to be the object's, and an object that is no more is noticed by its row.
"""

from dataclasses import asdict, dataclass

from sqlalchemy import Update, delete, insert, select, update

from troupe_orchestrator.store import schema
from troupe_orchestrator.store.database import Database


@dataclass(frozen=True, slots=True)
class ObjectRequest:
    """One object that asked."""

    uid: str
    """Of the object; id of its run or job."""
    kind: str
    namespace: str
    name: str
    generation: int
    """Of the spec that was carried out last."""
    reason: str = ""
    """Why nothing was made for it and nothing will be, CamelCase; empty where it was not refused."""
    message: str = ""
    """The same for people, with the remedy."""


async def list_requests(database: Database) -> list[ObjectRequest]:
    """All of them."""
    async with database.reading() as connection:
        rows = await connection.execute(select(schema.object_requests))
        return [ObjectRequest(**row) for row in rows.mappings()]


async def get_request(database: Database, uid: str) -> ObjectRequest | None:
    """The object that asked for a run or a job; None where a call did."""
    query = select(schema.object_requests).where(schema.object_requests.c.uid == uid)
    async with database.reading() as connection:
        row = (await connection.execute(query)).mappings().first()
    return None if row is None else ObjectRequest(**row)


async def put_request(database: Database, request: ObjectRequest) -> None:
    """Add one, or replace it."""
    async with database.writing() as connection:
        await connection.execute(delete(schema.object_requests).where(schema.object_requests.c.uid == request.uid))
        await connection.execute(insert(schema.object_requests).values(**asdict(request)))


async def forget_request(database: Database, uid: str) -> None:
    """The object is no more, and what it asked for has ended."""
    async with database.writing() as connection:
        await connection.execute(delete(schema.object_requests).where(schema.object_requests.c.uid == uid))


def carried_out(uid: str, generation: int) -> Update:
    """That a spec is carried out, for the transaction that does so."""
    table = schema.object_requests
    return update(table).where(table.c.uid == uid).values(generation=generation)
