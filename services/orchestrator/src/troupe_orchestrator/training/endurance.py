"""What fails in a run and can come back: told once, waited for, and given up where it has lasted too long.

Trouble is an action's own. It ends when that action succeeds, and patience is counted from its first failure. What cannot
be told because the store itself is away is kept, and told before anything else is done once the store takes it.
"""

import asyncio
import contextlib
import time
from dataclasses import dataclass
from typing import Final

import grpc
import structlog
from troupe.v1 import training_pb2
from troupe_contracts.errors import Unavailable, is_infrastructure

from troupe_orchestrator.rotation import NoMembersError, NoReplicasError
from troupe_orchestrator.store.database import StoreUnavailableError
from troupe_orchestrator.training.endings import ending_of
from troupe_orchestrator.training.events import EventLog
from troupe_orchestrator.training.learner import (
    BaseGoneError,
    ContradictionError,
    LearnerError,
    NonFiniteStepError,
    OtherWeightsError,
)
from troupe_orchestrator.training.protocol import Action, Work
from troupe_orchestrator.training.weights import WeightSyncError

logger = structlog.get_logger()

LASTING: Final = (NonFiniteStepError, ContradictionError, OtherWeightsError, BaseGoneError)
"""The same would be said again."""
PASSING: Final = (LearnerError, WeightSyncError, NoReplicasError, Unavailable, grpc.RpcError)
"""A service that is away or restarting, and the store."""
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 10.0
_MOST_DOUBLINGS = 10
_FEWEST_ATTEMPTS = 3
_MOST_REPEATS = 10
_LATE_SECONDS = 1.0
_GOES_ON = "the run goes on by itself once that is done"


@dataclass(slots=True)
class _Trouble:
    """An action that keeps failing."""

    since: float
    failures: int = 0


@dataclass(frozen=True, slots=True)
class _Untold:
    """A condition on its way to the run's events."""

    step: int
    since: float
    condition: training_pb2.Condition


class Endurance:
    """How a run bears what fails."""

    def __init__(self, events: EventLog, patience_seconds: float) -> None:
        """Nothing has failed yet.

        Args:
            events: of the run, in which trouble is told.
            patience_seconds: how long a service that fails is waited for.
        """
        self._events = events
        self._patience_seconds = patience_seconds
        self._troubles: dict[Action | None, _Trouble] = {}
        """What failed and has not succeeded since; None is looking."""
        self._untold: list[_Untold] = []
        self._waits_for = ""
        self._last_action: Action | None = None
        self._repeated = 0

    @property
    def troubled(self) -> bool:
        """Something has failed and not succeeded since."""
        return bool(self._troubles)

    @property
    def waits_for(self) -> str:
        """What the run waits for now, with the remedy; empty while it does something."""
        return self._waits_for

    def begins(self) -> None:
        """What was waited for answers: an action begins."""
        self._waits_for = ""

    async def tell(self) -> None:
        """Put into the run's events what has not been told yet.

        Raises:
            StoreUnavailableError: the store does not take it; the rest is kept.
        """
        while self._untold:
            first = self._untold[0]
            condition = training_pb2.Condition()
            condition.CopyFrom(first.condition)
            late = time.monotonic() - first.since
            if late >= _LATE_SECONDS:
                condition.message += f" (told {late:.0f} s later, when the store was back)"
            await self._events.append(first.step, condition)
            del self._untold[0]

    def succeeded(self, action: Action) -> None:
        """Trouble ends when the very action that failed succeeds: a learner that dies in every update does not become well
        by being restored in between."""
        for ended in (None, action):
            self._troubles.pop(ended, None)
        if action is Work.COMMIT:
            # What failed on the way there is not asked for again.
            self._troubles.clear()
        self._repeated = self._repeated + 1 if action == self._last_action else 0
        self._last_action = action
        if self._repeated == _MOST_REPEATS:
            raise RuntimeError(f"{action} succeeded {_MOST_REPEATS} times in a row and is still asked for")

    def committed(self) -> None:
        """The newest step is committed: a commit that failed has succeeded without an answer."""
        if Work.COMMIT in self._troubles:
            self._troubles.clear()

    async def endure(self, action: Action | None, error: Exception, step: int) -> None:
        """Wait before the next look; the error itself where it has lasted too long, or cannot pass."""
        if isinstance(error, grpc.RpcError) and not is_infrastructure(error):
            raise error
        now = time.monotonic()
        # What succeeds and fails in turn makes no circle: `patience_seconds` end that.
        self._last_action, self._repeated = None, 0
        store_away = isinstance(error, StoreUnavailableError)
        condition = ending_of(error).condition
        if condition is not None:
            condition.remedy = _GOES_ON if store_away else f"it is waited for; else {condition.remedy}"
            self._waits_for = f"waits: {condition.reason}: {condition.message}; {condition.remedy}"
        if action not in self._troubles:
            self._troubles[action] = _Trouble(now)
            logger.warning("waiting for a service", action=action, error=str(error))
            if condition is not None and all(condition != each.condition for each in self._untold):
                self._untold.append(_Untold(step, now, condition))
        if not store_away:
            with contextlib.suppress(Unavailable):  # told at the next look, then
                await self.tell()
        trouble = self._troubles[action]
        trouble.failures += 1
        lasting = trouble.failures >= _FEWEST_ATTEMPTS and now - trouble.since >= self._patience_seconds
        # Without its store a run can neither end nor pause. Where all replicas were taken away none has failed. It waits.
        if lasting and not store_away and not isinstance(error, NoMembersError):
            raise error
        await asyncio.sleep(pause_seconds(trouble.failures))


def pause_seconds(failures: int) -> float:
    """How long is waited after so many failures; of a store that is away for days there may be thousands."""
    return min(_FIRST_PAUSE_SECONDS * 2.0 ** min(failures - 1, _MOST_DOUBLINGS), _LONGEST_PAUSE_SECONDS)
