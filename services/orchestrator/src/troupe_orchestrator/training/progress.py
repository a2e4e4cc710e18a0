"""How far a step's rollouts are, for whoever watches the run now; and which faults of ours they met, for the record."""

import asyncio

from troupe.v1 import training_pb2

from troupe_orchestrator.rollout.faults import FaultTally, InfrastructureFaultError
from troupe_orchestrator.rollout.observer import Silent
from troupe_orchestrator.stages import StepPlan
from troupe_orchestrator.training.events import EventLog

_INTERVAL_SECONDS = 0.5


class RolloutProgress(Silent):
    """Counts executions that ended, and faults, and tells of them now and then."""

    def __init__(self, events: EventLog, plan: StepPlan, tasks: int, tasks_done: int) -> None:
        self.faults = FaultTally()
        self._events = events
        self._step = plan.step
        self._done = tasks_done * plan.designs * plan.executions
        self._total = tasks * plan.designs * plan.executions

    def execution_done(self) -> None:
        self._done += 1

    def fault(self, fault: InfrastructureFaultError) -> None:
        self.faults.add(fault)

    async def tell_faults(self) -> None:
        """Put the first fault of each kind into the run's events."""
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
