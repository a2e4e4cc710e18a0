"""Estimators by name: those of this package, and those of plug-ins (group `troupe.estimators`)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from pydantic import BaseModel
from troupe_contracts.plugins import Registry

from troupe_orchestrator.credit.agent_turn import AgentTurnOptions, agent_turn
from troupe_orchestrator.credit.hierarchical import HierarchicalOptions, hierarchical
from troupe_orchestrator.credit.leave_one_out import LeaveOneOutOptions, leave_one_out
from troupe_orchestrator.credit.types import Advantages, Outcomes, Values
from troupe_orchestrator.credit.value_baseline import ValueBaselineOptions, value_baseline


class EstimatorPart(Protocol):
    """An estimator with its options, and what it needs besides rewards; `Estimator` is one."""

    @property
    def options(self) -> type[BaseModel]:
        """The model of its options; forbids unknown ones."""

    @property
    def needs_values(self) -> bool:
        """Whether it wants learned values of task prompts."""

    def estimate(self, outcomes: Outcomes, options: Any, values: Values | None) -> Advantages:
        """Advantages by id; pure."""


@dataclass(frozen=True, slots=True)
class Estimator:
    """Puts an estimator together from a function."""

    options: type[BaseModel]
    estimate: Callable[[Outcomes, Any, Values | None], Advantages]
    needs_values: bool = False


ESTIMATORS: Final[Registry[EstimatorPart]] = Registry(
    "estimator",
    EstimatorPart,
    {
        "hierarchical": Estimator(HierarchicalOptions, hierarchical),
        "leave_one_out": Estimator(LeaveOneOutOptions, leave_one_out),
        "value_baseline": Estimator(ValueBaselineOptions, value_baseline, needs_values=True),
        "agent_turn": Estimator(AgentTurnOptions, agent_turn),
    },
)
