"""The store: a write is one fenced transaction."""

from collections import Counter
from dataclasses import dataclass, field

from troupe_orchestrator.store.steps import TRANSITIONS, StepState
from troupe_orchestrator.training.protocol import Saved
from troupe_orchestrator.training.queue import TaskQueue

RUN = "run"
TASKS = tuple(f"task-{number}" for number in range(7))
TASKS_PER_STEP, QUARANTINE_AFTER, KEEP = 2, 2, 2
Weights = tuple[str, ...]
"""The digests of the batches that made them, in order; before them what a fork began with."""


class RefusedError(Exception):
    """A part of the model refuses an effect; nothing changed."""


@dataclass
class Step:
    """A row of the store."""

    state: StepState
    task_ids: tuple[str, ...]
    queue: TaskQueue
    digest: str = ""
    dropped: tuple[str, ...] = ()
    behaviour: Weights = ()
    """What rolled it out."""


@dataclass
class Store:
    """Fenced transactions."""

    token: int = 1
    steps: list[Step] = field(default_factory=list)
    saved: list[Saved] = field(default_factory=list)
    began_with: Weights = ()
    drops: Counter[str] = field(default_factory=Counter)

    @property
    def state(self) -> StepState:
        return self.steps[-1].state if self.steps else StepState.COMMITTED

    @property
    def sealed(self) -> tuple[str, ...]:
        return tuple(step.digest for step in self.steps if step.digest)

    def weights(self, updates: int) -> Weights:
        """What the run's policy is after so many updates."""
        return (*self.began_with, *self.sealed[:updates])

    @property
    def quarantined(self) -> frozenset[str]:
        return frozenset(task for task, count in self.drops.items() if count >= QUARANTINE_AFTER)

    def write(self, token: int) -> None:
        if token != self.token:
            raise RefusedError("the lease is another's")

    def advance(self, token: int, number: int, state: StepState) -> Step:
        self.write(token)
        if number != len(self.steps) or TRANSITIONS[self.steps[-1].state] is not state:
            raise RefusedError("no such transition")
        self.steps[-1].state = state
        return self.steps[-1]
