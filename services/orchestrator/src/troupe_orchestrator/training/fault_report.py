"""Which faults of ours the rollouts of a step met, in the run's events: one of each kind, however many there were."""

import asyncio
from typing import Final

from troupe.v1 import training_pb2

from troupe_orchestrator.rollout.faults import PATIENCE_SECONDS, FaultTally, InfrastructureFaultError
from troupe_orchestrator.rollout.observer import Silent
from troupe_orchestrator.training.events import EventLog

INTERVAL_SECONDS: Final = 0.5
"""Between two looks at whether there is something to tell."""


class FaultReport(Silent):
    """Counts faults, and tells of them now and then; of services without room, once of each.

    Args:
        whose: rollouts, where they are not of the tasks that are trained on. Each event begins with it.
    """

    def __init__(self, events: EventLog, step: int, whose: str = "") -> None:
        self.faults = FaultTally()
        self.step = step
        self._full: dict[str, InfrastructureFaultError] = {}
        """What a service without room said, the first time in this step."""
        self._untold_full: list[str] = []
        self._events = events
        self._whose = f"{whose}: " if whose else ""

    def fault(self, fault: InfrastructureFaultError) -> None:
        self.faults.add(fault)

    def full(self, fault: InfrastructureFaultError) -> None:
        if fault.service not in self._full:
            self._full[fault.service] = fault
            self._untold_full.append(fault.service)

    async def tell_faults(self) -> None:
        """Put the first fault of each kind into the run's events, and each service that has had no room for a while."""
        while self._untold_full:
            service = self._untold_full[0]
            fault = self._full[service]
            told = training_pb2.Condition(
                reason=f"{service.capitalize()}Full",
                message=f"{self._whose}{fault}; it is waited for, which is no fault until it has lasted "
                f"{PATIENCE_SECONDS:g} s",
                remedy=fault.remedy,
            )
            await self._events.append(self.step, told)
            self._untold_full.remove(service)
        while self.faults.untold:
            fault = self.faults.untold[0]
            told = training_pb2.Condition(
                reason="InfrastructureFault", message=f"{self._whose}{fault}", remedy=fault.remedy
            )
            await self._events.append(self.step, told)
            self.faults.untold.remove(fault)

    async def report(self) -> None:
        """Tell it until cancelled."""
        while True:
            await self.tell_faults()
            await asyncio.sleep(INTERVAL_SECONDS)
