"""How far a step's rollouts are, for whoever watches the run now; and which faults of ours they met, for the record."""

import asyncio

from troupe.v1 import training_pb2

from troupe_orchestrator.stages import StepPlan
from troupe_orchestrator.training.events import EventLog
from troupe_orchestrator.training.fault_report import INTERVAL_SECONDS, FaultReport


class RolloutProgress(FaultReport):
    """Counts executions that ended, and tells of them now and then."""

    def __init__(self, events: EventLog, plan: StepPlan, tasks: int, tasks_done: int) -> None:
        super().__init__(events, plan.step)
        self._done = tasks_done * plan.designs * plan.executions
        self._total = tasks * plan.designs * plan.executions

    def execution_done(self) -> None:
        self._done += 1

    async def report(self) -> None:
        """Tell it until cancelled."""
        while True:
            await self.tell_faults()
            await self._events.progress(
                self.step,
                training_pb2.StepProgress(
                    state=training_pb2.STEP_STATE_ROLLING,
                    executions_done=self._done,
                    executions_total=self._total,
                ),
            )
            await asyncio.sleep(INTERVAL_SECONDS)
