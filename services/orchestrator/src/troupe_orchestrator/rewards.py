"""The reward of an execution: a table of named terms with weights per role, each of them stored.

| term | value | roles |
|---|---|---|
| `success` | 1 for a right answer whose provenance holds | both |
| `delivery_format` | share of the conversations whose last turn has a non-empty `<delivery>` | both |
| `solution_format` | 1 if the turn that the result came from gives it in the task's format | both |
| `cost` | −(agent calls − 1) of a *successful* execution | designer |
| of plug-ins | what the plug-in makes of the facts (group `troupe.rewards`), weighted under `terms` | as weighted |

Formats are read off recorded turns, never off anything that the script printed; without a turn they are 0. Cost on failed
executions would reward the cheapest failure, so there is none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator
from troupe_contracts.plugins import Registry

from troupe_orchestrator.datasets.task import TaskType
from troupe_orchestrator.grading.answers import delivery, formatted_answer
from troupe_orchestrator.tree import TermRecord

MOST = 1e9
"""Of a term and of a weight: sums of squares of their products are finite."""
Weight = Annotated[float, Field(ge=0, le=MOST)]


class RewardTermError(Exception):
    """A plug-in's term has no value. Says nothing about the execution: a fault of ours, never a reward."""


class RewardTerm(Protocol):
    """A function that makes a term of what is known of an execution: pure, and over within a millisecond."""

    def __call__(self, facts: "ExecutionFacts") -> float:
        """The value that its weight multiplies, from -1e9 to 1e9."""


TERMS: Final[Registry[RewardTerm]] = Registry("reward term", RewardTerm, {})


class _Weights(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    terms: Mapping[str, Weight] = Field(default_factory=dict)
    """Weights of plug-ins' terms, by name."""

    @field_validator("terms")
    @classmethod
    def _are_terms(cls, terms: Mapping[str, float]) -> Mapping[str, float]:
        for name in terms:
            if name in cls.model_fields:
                raise ValueError(f"{name} is a term of Troupe's own: give its weight beside `terms`")
            TERMS.find(name)
        return terms


class ExecutorWeights(_Weights):
    """Weights of the executor's terms."""

    success: Weight = 1.0
    delivery_format: Weight = 0.1
    solution_format: Weight = 0.1


class DesignerWeights(_Weights):
    """Weights of the designer's terms."""

    success: Weight = 1.0
    delivery_format: Weight = 0.0
    solution_format: Weight = 0.0
    cost: Weight = 0.01
    """Per agent call beyond the first, on successful executions only."""


class RewardConfig(BaseModel):
    """The reward table of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

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
    task_type: TaskType = "math"
    question: str = ""
    answer: str = ""
    """The final answer; empty if there is none."""
    script: str = ""
    last_turns: tuple[str, ...] = ()
    """Text of the last recorded turn of each conversation."""


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
    """The terms of one execution.

    Raises:
        RewardTermError: a plug-in's term failed.
    """
    paid_format = facts.success or not config.format_requires_success
    shared = {
        "success": float(facts.success),
        "delivery_format": facts.delivery_format if paid_format else 0.0,
        "solution_format": facts.solution_format if paid_format else 0.0,
    }
    cost = -float(max(0, facts.agent_calls - 1)) if facts.success else 0.0
    executor, designer = config.executor.model_dump(), config.designer.model_dump()
    added = {name: _value(name, facts) for name in (*config.executor.terms, *config.designer.terms)}
    return RewardBreakdown(
        (
            *(TermRecord("executor", name, value, executor[name]) for name, value in shared.items()),
            *(TermRecord("designer", name, value, designer[name]) for name, value in (shared | {"cost": cost}).items()),
            *(TermRecord("executor", name, added[name], weight) for name, weight in config.executor.terms.items()),
            *(TermRecord("designer", name, added[name], weight) for name, weight in config.designer.terms.items()),
        )
    )


def _value(name: str, facts: ExecutionFacts) -> float:
    """What a plug-in makes of an execution."""
    term = TERMS.find(name)
    try:
        value = term(facts)
        shown = f"{value!r:.80}"
    # Code of others: whatever it raises says nothing about the execution.
    except Exception as error:
        raise RewardTermError(f"the reward term {name!r} raised {type(error).__name__}: {error}") from error
    if isinstance(value, bool | int | float) and -MOST <= value <= MOST:
        return float(value)
    raise RewardTermError(f"the reward term {name!r} must return a number from {-MOST:g} to {MOST:g}, got {shown}")
