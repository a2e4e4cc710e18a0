"""How far a step's rollouts are, for whoever watches the run now; and which faults of ours they met, for the record."""

import asyncio

from troupe.v1 import training_pb2

from troupe_orchestrator.rollout.faults import PATIENCE_SECONDS, FaultTally, InfrastructureFaultError
from troupe_orchestrator.rollout.observer import Silent
from troupe_orchestrator.stages import StepPlan
from troupe_orchestrator.training.events import EventLog

_INTERVAL_SECONDS = 0.5


class RolloutProgress(Silent):
    """Counts executions that ended, and faults, and tells of them now and then; of services without room, once of each."""

    def __init__(self, events: EventLog, plan: StepPlan, tasks: int, tasks_done: int) -> None:
        self.faults = FaultTally()
        self._full: dict[str, InfrastructureFaultError] = {}
        """What a service without room said, the first time in this step."""
        self._untold_full: list[str] = []
        self._events = events
        self._step = plan.step
        self._done = tasks_done * plan.designs * plan.executions
        self._total = tasks * plan.designs * plan.executions

    def execution_done(self) -> None:
        self._done += 1

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
                message=f"{fault}; it is waited for, which is no fault until it has lasted {PATIENCE_SECONDS:g} s",
                remedy=fault.remedy,
            )
            await self._events.append(self._step, told)
            self._untold_full.remove(service)
        while self.faults.untold:
            fault = self.faults.untold[0]
            told = training_pb2.Condition(reason="InfrastructureFault", message=str(fault), remedy=fault.remedy)
            await self._events.append(self._step, told)
            self.faults.untold.remove(fault)

    async def report(self) -> None:
        """Tell it until cancelled."""
        while True:
            await self.tell_faults()
            await self._events.progress(
                self._step,
                training_pb2.StepProgress(
                    state=training_pb2.STEP_STATE_ROLLING,
                    executions_done=self._done,
                    executions_total=self._total,
                ),
            )
            await asyncio.sleep(_INTERVAL_SECONDS)
