"""How far a step's rollouts are, for whoever watches the run now; and which faults of ours they met, for the record."""

from functools import partial

from troupe.v1 import training_pb2

from troupe_orchestrator.rollout.fault_report import FaultReport
from troupe_orchestrator.stages import StepPlan
from troupe_orchestrator.training.events import EventLog


class RolloutProgress(FaultReport):
    """Counts executions that ended, and tells of them now and then."""

    def __init__(self, events: EventLog, plan: StepPlan, tasks: int, tasks_done: int) -> None:
        super().__init__(partial(events.append, plan.step))
        self._events = events
        self._step = plan.step
        self._done = tasks_done * plan.designs * plan.executions
        self._total = tasks * plan.designs * plan.executions

    def execution_done(self) -> None:
        self._done += 1

    async def tell(self) -> None:
        await super().tell()
        await self._events.progress(
            self._step,
            training_pb2.StepProgress(
                state=training_pb2.STEP_STATE_ROLLING,
                executions_done=self._done,
                executions_total=self._total,
            ),
        )
