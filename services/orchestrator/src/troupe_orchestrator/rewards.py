"""The reward of an execution: a table of named terms with weights per role, each of them stored.

| term | value | roles |
|---|---|---|
| `success` | 1 for a right answer whose provenance holds | both |
| `delivery_format` | share of the conversations whose last turn has a non-empty `<delivery>` | both |
| `solution_format` | 1 if the turn that the result came from gives it in the task's format | both |
| `cost` | −(agent calls − 1) of a *successful* execution | designer |

Formats are read off recorded turns, never off anything that the script printed; without a turn they are 0. Cost on failed
executions would reward the cheapest failure, so there is none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from troupe_orchestrator.datasets.task import TaskType
from troupe_orchestrator.grading.answers import delivery, formatted_answer
from troupe_orchestrator.tree import TermRecord

Weight = Annotated[float, Field(ge=0)]


class ExecutorWeights(BaseModel):
    """Weights of the executor's terms."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    success: Weight = 1.0
    delivery_format: Weight = 0.1
    solution_format: Weight = 0.1


class DesignerWeights(BaseModel):
    """Weights of the designer's terms."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    success: Weight = 1.0
    delivery_format: Weight = 0.0
    solution_format: Weight = 0.0
    cost: Weight = 0.01
    """Per agent call beyond the first, on successful executions only."""


class RewardConfig(BaseModel):
    """The reward table of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    executor: ExecutorWeights = ExecutorWeights()
    designer: DesignerWeights = DesignerWeights()
    format_requires_success: bool = False
    """Pay for format on successful executions only."""


@dataclass(frozen=True, slots=True)
class ExecutionFacts:
    """What of an execution is paid for. See the table above."""

    success: bool
    delivery_format: float
    solution_format: float
    agent_calls: int


@dataclass(frozen=True, slots=True)
class RewardBreakdown:
    """All terms of one execution."""

    terms: tuple[TermRecord, ...]

    def total(self, role: Literal["designer", "executor"]) -> float:
        """Sum of value × weight over the role's terms."""
        return sum(term.value * term.weight for term in self.terms if term.role == role)


def delivery_share(last_turns: Sequence[str]) -> float:
    """Share of conversations whose last turn has a non-empty `<delivery>`; 0 without conversations.

    Args:
        last_turns: text of the last recorded turn of each conversation.
    """
    if not last_turns:
        return 0.0
    return sum(delivery(text) is not None for text in last_turns) / len(last_turns)


def solution_share(source_turn: str | None, task_type: TaskType) -> float:
    """1 if the recorded turn that the result came from gives it in the task's format.

    Args:
        source_turn: text of that turn, None without one.
    """
    return float(source_turn is not None and formatted_answer(source_turn, task_type) is not None)


def reward(config: RewardConfig, facts: ExecutionFacts) -> RewardBreakdown:
    """The terms of one execution."""
    paid_format = facts.success or not config.format_requires_success
    shared = {
        "success": float(facts.success),
        "delivery_format": facts.delivery_format if paid_format else 0.0,
        "solution_format": facts.solution_format if paid_format else 0.0,
    }
    cost = -float(max(0, facts.agent_calls - 1)) if facts.success else 0.0
    executor, designer = config.executor.model_dump(), config.designer.model_dump()
    return RewardBreakdown(
        (
            *(TermRecord("executor", name, value, executor[name]) for name, value in shared.items()),
            *(TermRecord("designer", name, value, designer[name]) for name, value in (shared | {"cost": cost}).items()),
        )
    )
