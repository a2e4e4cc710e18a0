"""Phases of a weight update on one replica, and the events that lead from one to the next.

                begin            stage            commit            loaded
    IDLE ──────────────▶ BEGUN ─────────▶ STAGED ─────────▶ COMMITTING ─────────▶ IDLE
      ▲                    │                 │                   │
      └──────── abort ─────┴──── abort ──────┘                   └── failed ──▶ IDLE

Beside the phase a replica is *intact* or *broken*: a load that failed after it began breaks it, a load that
succeeded mends it. A broken replica takes updates and serves nothing.
"""

from enum import Enum
from types import MappingProxyType
from typing import Final

from troupe.v1 import policy_pb2


class Phase(Enum):
    """Where an update stands."""

    IDLE = "no update is open"
    BEGUN = "an update is begun"
    STAGED = "an update is staged"
    COMMITTING = "an update is being committed"


class Event(Enum):
    """What moves an update on."""

    BEGIN = "begin"
    STAGE = "stage"
    COMMIT = "commit"
    ABORT = "abort"
    LOADED = "loaded"
    FAILED = "failed"


TRANSITIONS: Final = MappingProxyType(
    {
        (Phase.IDLE, Event.BEGIN): Phase.BEGUN,
        (Phase.BEGUN, Event.STAGE): Phase.STAGED,
        (Phase.STAGED, Event.COMMIT): Phase.COMMITTING,
        (Phase.BEGUN, Event.ABORT): Phase.IDLE,
        (Phase.STAGED, Event.ABORT): Phase.IDLE,
        (Phase.COMMITTING, Event.LOADED): Phase.IDLE,
        (Phase.COMMITTING, Event.FAILED): Phase.IDLE,
    }
)

_REPORTED: Final = MappingProxyType(
    {
        Phase.IDLE: policy_pb2.UPDATE_STATE_SERVING,
        Phase.BEGUN: policy_pb2.UPDATE_STATE_BEGUN,
        Phase.STAGED: policy_pb2.UPDATE_STATE_STAGED,
    }
)


class IllegalTransitionError(Exception):
    """An event that does not fit the phase."""

    def __init__(self, phase: Phase, event: Event) -> None:
        super().__init__(f"cannot {event.value}: {phase.value}")
        self.phase = phase
        self.event = event


def after(phase: Phase, event: Event) -> Phase:
    """The phase that follows.

    Raises:
        IllegalTransitionError: the event does not fit the phase.
    """
    if (phase, event) not in TRANSITIONS:
        raise IllegalTransitionError(phase, event)
    return TRANSITIONS[phase, event]


def reported(phase: Phase, *, broken: bool) -> policy_pb2.UpdateState.ValueType:
    """What `GetPolicy` says."""
    if phase is Phase.COMMITTING:
        return policy_pb2.UPDATE_STATE_COMMITTING
    return policy_pb2.UPDATE_STATE_BROKEN if broken else _REPORTED[phase]
