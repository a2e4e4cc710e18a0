"""Estimators by name: those of this package, and those that other distributions add.

An entry point of the group `troupe.estimators` names an `Estimator`; its own name must be the entry point's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from pydantic import BaseModel

from troupe_orchestrator.credit.agent_turn import AgentTurnOptions, agent_turn
from troupe_orchestrator.credit.hierarchical import HierarchicalOptions, hierarchical
from troupe_orchestrator.credit.leave_one_out import LeaveOneOutOptions, leave_one_out
from troupe_orchestrator.credit.types import Advantages
from troupe_orchestrator.credit.value_baseline import ValueBaselineOptions, value_baseline

ENTRY_POINT_GROUP = "troupe.estimators"


@dataclass(frozen=True, slots=True)
class Estimator:
    """An estimator with its options, and what it needs besides rewards."""

    name: str
    options: type[BaseModel]
    estimate: Callable[..., Advantages]
    """`estimate(outcomes, options, values)`."""
    needs_values: bool = False
    needs_turns: bool = False


BUILT_IN = (
    Estimator("hierarchical", HierarchicalOptions, hierarchical),
    Estimator("leave_one_out", LeaveOneOutOptions, leave_one_out),
    Estimator("value_baseline", ValueBaselineOptions, value_baseline, needs_values=True),
    Estimator("agent_turn", AgentTurnOptions, agent_turn, needs_turns=True),
)


class UnknownEstimatorError(ValueError):
    """A name that no estimator has; says which there are."""


@cache
def known_estimators() -> Mapping[str, Estimator]:
    """All estimators by name.

    Raises:
        ValueError: a plug-in is not an `Estimator`, or takes a name that is taken.
    """
    known = {estimator.name: estimator for estimator in BUILT_IN}
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        plugin: Any = entry_point.load()
        if not isinstance(plugin, Estimator) or plugin.name != entry_point.name:
            raise ValueError(
                f"entry point {entry_point.name} of {ENTRY_POINT_GROUP} must be an Estimator of that name, "
                f"got {plugin!r:.200}"
            )
        if plugin.name in known:
            raise ValueError(f"entry point {entry_point.value} takes the name {plugin.name}, which is taken: rename it")
        known[plugin.name] = plugin
    return known


def find_estimator(name: str) -> Estimator:
    """The estimator of that name.

    Raises:
        UnknownEstimatorError: there is none.
    """
    known = known_estimators()
    if name not in known:
        raise UnknownEstimatorError(f"no estimator is named {name!r}; known: {', '.join(sorted(known))}")
    return known[name]
