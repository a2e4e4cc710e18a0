"""Work that needs weights which may be lost under it."""

import contextlib
from collections.abc import AsyncGenerator

from troupe_orchestrator.fleet import PolicyFleet
from troupe_orchestrator.rollout.nursery import Nursery


@contextlib.asynccontextmanager
async def while_served(*fleets: PolicyFleet) -> AsyncGenerator[None]:
    """What is done inside is given up once one of the fleets cannot serve before the next sync: it would wait in vain.

    Raises:
        NobodyCanServeError: it was given up.
    """
    async with Nursery() as group:
        watching = [group.create_task(fleet.cannot_serve()) for fleet in fleets]
        yield
        for task in watching:
            task.cancel()
