"""What to do for an object: a table of what it wants and what its run is. Pure."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from troupe_orchestrator.custom_resources.resources import Desired
from troupe_orchestrator.store.runs import RunState

State = RunState | None
"""Of a run, or of a job, whose states have the same names; None where it was not created."""

ENDED: Final = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED})


class Act(StrEnum):
    """One thing to do."""

    NOTHING = "nothing"
    NOTE = "note"
    """Record that the spec is carried out: all is as it wants."""
    CREATE = "create"
    PAUSE = "pause"
    RESUME = "resume"
    CANCEL = "cancel"
    FORGET = "forget"
    """The object is no more, and its run has ended."""


_DONE: Final[Mapping[State, Act]] = dict.fromkeys((None, *RunState), Act.NOTHING)

ACTS: Final[Mapping[Desired, Mapping[State, Act]]] = {
    Desired.RUNNING: {
        **_DONE,
        None: Act.CREATE,
        RunState.PAUSED: Act.RESUME,
        RunState.FAILED: Act.RESUME,
    },
    # A queued one is paused as it starts.
    Desired.PAUSED: {**_DONE, RunState.RUNNING: Act.PAUSE},
    Desired.CANCELLED: {
        **_DONE,
        RunState.QUEUED: Act.CANCEL,
        RunState.RUNNING: Act.CANCEL,
        RunState.PAUSED: Act.CANCEL,
    },
}


def decide(desired: Desired, state: State, carried_out: bool, refused: bool) -> Act:
    """What an object needs.

    Args:
        carried_out: its spec, as it is now, was carried out before: what was resumed then and stopped since, has stopped
            for a reason that somebody has to look at.
        refused: nothing was created for it, and nothing will be.
    """
    act = Act.NOTHING if refused else ACTS[desired][state]
    if act is Act.RESUME and carried_out:
        return Act.NOTHING
    return Act.NOTE if act is Act.NOTHING and not carried_out else act


def decide_for_gone(state: State) -> Act:
    """What remains to be done for an object that is no more."""
    return Act.FORGET if state is None or state in ENDED else Act.CANCEL
