"""The status of an object: what SQL says, and nothing else. Pure.

What comes from elsewhere is only the time at which a condition changed, which is the object's own to keep, and what holds
the request up just now.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from troupe_kubernetes.status import Condition, written_conditions

from troupe_orchestrator.custom_resources.backing import Shown
from troupe_orchestrator.custom_resources.decisions import ENDED
from troupe_orchestrator.custom_resources.resources import TRAINING_RUN, Desired, Kind
from troupe_orchestrator.store.object_requests import ObjectRequest
from troupe_orchestrator.store.runs import RunState

PENDING: Final = "Pending"
CANCELLED: Final = RunState.CANCELLED.capitalize()
FAILED: Final = RunState.FAILED.capitalize()
PHASES: Final = (PENDING, *(state.capitalize() for state in RunState))
ENDED_PHASES: Final = frozenset(state.capitalize() for state in ENDED)

_BY_REQUEST: Final = "ByRequest"
_LONGEST_MESSAGE: Final = 8192
_LET_GO_ON: Final = "set spec.desiredState to Running to let it go on"
_SAY_ANEW: Final = "to let it go on, set spec.desiredState to Paused and then to Running"


def status_of(
    kind: Kind,
    desired: Desired,
    request: ObjectRequest | None,
    shown: Shown | None,
    held_up_by: str,
    before: Mapping[str, Any],
    now: str,
) -> dict[str, Any]:
    """What an object's status is to be.

    Args:
        request: how far the object was carried out; None where nobody has looked at it yet.
        shown: of its run or job.
        held_up_by: why what it wants cannot be done just now; empty where it can.
        before: the status that it has.
    """
    refused = request is not None and bool(request.reason)
    phase = _phase(desired, refused, shown)
    generation = 0 if request is None else request.generation
    message = request.message if request is not None and refused else "" if shown is None else shown.message
    message = message[:_LONGEST_MESSAGE]
    conditions = [_accepted(desired, request, shown, held_up_by)]
    if kind is TRAINING_RUN:
        conditions.append(_paused(desired, shown, phase, held_up_by))
    conditions += [
        Condition("Complete", phase == "Succeeded", phase),
        Condition("Failed", phase == FAILED, _why_failed(request, shown, phase), message if phase == FAILED else ""),
        Condition("Cancelled", phase == CANCELLED, phase, message if phase == CANCELLED else ""),
    ]
    return {
        "observedGeneration": generation,
        "phase": phase,
        **({} if shown is None else shown.fields),
        "reason": message,
        "conditions": written_conditions(conditions, before.get("conditions") or (), generation, now),
    }


def _phase(desired: Desired, refused: bool, shown: Shown | None) -> str:
    if refused:
        return FAILED
    if shown is None:
        return CANCELLED if desired is Desired.CANCELLED else PENDING
    return shown.state.capitalize()


def _accepted(desired: Desired, request: ObjectRequest | None, shown: Shown | None, held_up_by: str) -> Condition:
    """Whether there is a run or a job for it."""
    if request is not None and request.reason:
        return Condition("Accepted", False, request.reason, request.message[:_LONGEST_MESSAGE])
    if shown is not None:
        return Condition("Accepted", True, "Created")
    if held_up_by:
        return Condition("Accepted", False, "Waiting", held_up_by)
    return Condition("Accepted", False, "Creating" if desired is Desired.RUNNING else desired.value)


def _paused(desired: Desired, shown: Shown | None, phase: str, held_up_by: str) -> Condition:
    if shown is None:
        asked = desired is Desired.PAUSED and phase == PENDING
        return Condition("Paused", asked, _BY_REQUEST if asked else phase, _LET_GO_ON if asked else "")
    if shown.state is not RunState.PAUSED:
        return Condition("Paused", False, phase)
    if held_up_by:
        return Condition("Paused", True, "CannotGoOn", held_up_by)
    # What it says of itself is meant for calls: how an object lets it go on is said here.
    remedy = _LET_GO_ON if desired is Desired.PAUSED else _SAY_ANEW
    return Condition("Paused", True, shown.cause or _BY_REQUEST, f"{shown.message[:_LONGEST_MESSAGE]}; {remedy}")


def _why_failed(request: ObjectRequest | None, shown: Shown | None, phase: str) -> str:
    if phase != FAILED:
        return phase
    if request is not None and request.reason:
        return request.reason
    return (shown.cause if shown is not None else "") or FAILED
