"""Which faults of ours rollouts met, as events of their run or job: one of each kind, however many there were."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from troupe.v1 import training_pb2

from troupe_orchestrator.rollout.faults import PATIENCE_SECONDS, FaultTally, InfrastructureFaultError
from troupe_orchestrator.rollout.nursery import Nursery
from troupe_orchestrator.rollout.observer import Silent

INTERVAL_SECONDS: Final = 0.5
"""Between two looks at whether there is something to tell."""


class FaultReport(Silent):
    """Counts faults, and tells of them now and then; of services without room, once of each.

    Args:
        tell: puts one into the events.
        whose: rollouts, where they are not of the tasks that are trained on. Each event begins with it.
    """

    def __init__(self, tell: Callable[[training_pb2.Condition], Awaitable[None]], whose: str = "") -> None:
        self.faults = FaultTally()
        self._full: dict[str, InfrastructureFaultError] = {}
        """What a service without room said, the first time."""
        self._untold_full: list[str] = []
        self._tell = tell
        self._whose = f"{whose}: " if whose else ""

    def fault(self, fault: InfrastructureFaultError) -> None:
        self.faults.add(fault)

    def full(self, fault: InfrastructureFaultError) -> None:
        if fault.service not in self._full:
            self._full[fault.service] = fault
            self._untold_full.append(fault.service)

    async def tell_faults(self) -> None:
        """Put the first fault of each kind into the events, and each service that has had no room for a while."""
        while self._untold_full:
            service = self._untold_full[0]
            fault = self._full[service]
            told = training_pb2.Condition(
                reason=f"{service.capitalize()}Full",
                message=f"{self._whose}{fault}; it is waited for, which is no fault until it has lasted "
                f"{PATIENCE_SECONDS:g} s",
                remedy=fault.remedy,
            )
            await self._tell(told)
            self._untold_full.remove(service)
        while self.faults.untold:
            fault = self.faults.untold[0]
            told = training_pb2.Condition(
                reason="InfrastructureFault", message=f"{self._whose}{fault}", remedy=fault.remedy
            )
            await self._tell(told)
            self.faults.untold.remove(fault)

    async def tell(self) -> None:
        """What there is to tell now."""
        await self.tell_faults()

    @contextlib.asynccontextmanager
    async def reporting(self) -> AsyncIterator[None]:
        """Tells it while the block runs, and at its end what is left to tell."""
        ended = asyncio.Event()
        async with Nursery() as group:
            group.create_task(self._tell_until(ended))
            yield
            # Not cancelled: what it is telling may be stored already, and would be told again.
            ended.set()

    async def _tell_until(self, ended: asyncio.Event) -> None:
        while not ended.is_set():
            await self.tell()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL_SECONDS):
                    await ended.wait()
        await self.tell_faults()
