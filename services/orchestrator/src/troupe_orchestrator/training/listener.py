"""Who is told what runs do, beside the watchers of their events. Called on the event loop; must not block it."""

from dataclasses import dataclass
from typing import Final, Protocol

from troupe.v1 import training_pb2

from troupe_orchestrator.stages import StepPlan


class RunListener(Protocol):
    """Somebody outside of the runs."""

    def rolls(self, run_id: str, plan: StepPlan) -> None:
        """A step's tasks are about to be rolled out, perhaps again after a restart."""

    def stored(self, run_id: str, event: training_pb2.RunEvent) -> None:
        """An event of a run is in the store."""


class _Nobody:
    """Where nobody listens."""

    def rolls(self, run_id: str, plan: StepPlan) -> None:
        """Nothing follows."""

    def stored(self, run_id: str, event: training_pb2.RunEvent) -> None:
        """Nothing follows."""


NOBODY: Final[RunListener] = _Nobody()


@dataclass(frozen=True, slots=True)
class Everyone:
    """Several listeners, told in turn."""

    listeners: tuple[RunListener, ...]

    def rolls(self, run_id: str, plan: StepPlan) -> None:
        for each in self.listeners:
            each.rolls(run_id, plan)

    def stored(self, run_id: str, event: training_pb2.RunEvent) -> None:
        for each in self.listeners:
            each.stored(run_id, event)
