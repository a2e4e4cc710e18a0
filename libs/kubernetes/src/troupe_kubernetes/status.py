"""The status of an object: its conditions, and the patch that makes one status of another. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from troupe_kubernetes.api import Object


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that is the case or not, for `kubectl wait --for=condition=TYPE`."""

    type: str
    holds: bool
    reason: str
    """CamelCase, never empty."""
    message: str = ""


def written_conditions(
    conditions: Iterable[Condition], before: Iterable[Mapping[str, Any]], generation: int, now: str
) -> list[Object]:
    """Conditions as objects have them. The time of a transition is that of a change of the status alone.

    Args:
        before: those that the object has.
        generation: of the spec that they are of.
        now: RFC 3339.
    """
    known = {each.get("type"): each for each in before}
    written = []
    for condition in conditions:
        status = "True" if condition.holds else "False"
        last = known.get(condition.type, {})
        same = last.get("status") == status and "lastTransitionTime" in last
        written.append(
            {
                "type": condition.type,
                "status": status,
                "reason": condition.reason,
                "message": condition.message,
                "observedGeneration": generation,
                "lastTransitionTime": last["lastTransitionTime"] if same else now,
            }
        )
    return written


def merge_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> Object:
    """The JSON merge patch (RFC 7386) from one object to another; empty where they are equal. `after` has no nulls."""
    patch: Object = {key: None for key in before if key not in after}
    for key, value in after.items():
        known = before.get(key)
        if isinstance(value, Mapping) and isinstance(known, Mapping):
            inner = merge_patch(known, value)
            if inner:
                patch[key] = inner
        elif key not in before or known != value:
            patch[key] = value
    return patch
