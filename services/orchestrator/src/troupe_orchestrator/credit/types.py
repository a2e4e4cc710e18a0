"""What estimators read and return.

Rewards come in by id and advantages go out by id: nothing here knows of positions in a batch. An execution counts once,
however many turns it had. An invalid design has no executions and reward 0; it belongs to the designer's group.

- `DesignOutcome`, `ExecutionOutcome`, `TurnOutcome`: one node of a rollout tree each, reduced to ids and rewards.
- `Outcomes`: all of a batch, checked for consistency when it is made.
- `Values`: learned values of task prompts, for `value_baseline`.
- `Group`: the samples that were compared with each other, and their statistics.
- `Advantages`: what an estimator returns.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

Role = Literal["designer", "executor"]
GroupBy = Literal["task", "design"]
TurnKey = tuple[str, int]
"""Id of the conversation's node, and the position of the turn among its generated turns, from 0."""


@dataclass(frozen=True, slots=True)
class DesignOutcome:
    """A sampled design. An invalid one was never executed."""

    design_id: str
    task_id: str
    valid: bool = True


@dataclass(frozen=True, slots=True)
class ExecutionOutcome:
    """A finished execution, with its reward as each role sees it."""

    execution_id: str
    design_id: str
    task_id: str
    reward_executor: float
    reward_designer: float


@dataclass(frozen=True, slots=True)
class TurnOutcome:
    """One generated turn of an agent in an execution."""

    execution_id: str
    conversation_id: str
    agent: str
    turn: int
    """Position among the conversation's generated turns, from 0."""


@dataclass(frozen=True, slots=True)
class Values:
    """Value of each task's prompt as the learner's value heads give it, by task id."""

    designer: Mapping[str, float]
    executor: Mapping[str, float]


class OutcomeError(ValueError):
    """Outcomes that contradict each other: a fault of the caller, never of a policy."""


@dataclass(frozen=True)
class Outcomes:
    """All outcomes of a batch. A task that was dropped is absent as a whole.

    Raises:
        OutcomeError: duplicate ids, an execution of an unknown or invalid design or with another task than its design, a
            valid design without executions, a turn of an unknown execution.
    """

    designs: tuple[DesignOutcome, ...]
    executions: tuple[ExecutionOutcome, ...]
    turns: tuple[TurnOutcome, ...] = ()

    def __post_init__(self) -> None:
        designs = {design.design_id: design for design in self.designs}
        if len(designs) != len(self.designs):
            raise OutcomeError("two designs share one id")
        if len(self.execution_by_id) != len(self.executions):
            raise OutcomeError("two executions share one id")
        for execution in self.executions:
            design = designs.get(execution.design_id)
            if design is None or not design.valid or design.task_id != execution.task_id:
                raise OutcomeError(
                    f"execution {execution.execution_id} names design {execution.design_id} of task "
                    f"{execution.task_id}, which is not among the valid designs of that task"
                )
        executed = {execution.design_id for execution in self.executions}
        for design in self.designs:
            if design.valid and design.design_id not in executed:
                raise OutcomeError(
                    f"design {design.design_id} is valid and has no execution: drop its whole task {design.task_id}"
                )
        if len({(turn.conversation_id, turn.turn) for turn in self.turns}) != len(self.turns):
            raise OutcomeError("two turns share one conversation and position")
        for turn in self.turns:
            if turn.execution_id not in self.execution_by_id:
                raise OutcomeError(f"a turn of {turn.conversation_id} names the unknown execution {turn.execution_id}")

    @cached_property
    def execution_by_id(self) -> Mapping[str, ExecutionOutcome]:
        return {execution.execution_id: execution for execution in self.executions}

    @cached_property
    def design_rewards(self) -> Mapping[str, float]:
        """Reward of each design: the mean over its executions, 0 for an invalid one."""
        rewards: dict[str, list[float]] = {design.design_id: [] for design in self.designs}
        for execution in self.executions:
            rewards[execution.design_id].append(execution.reward_designer)
        return {design_id: sum(own) / len(own) if own else 0.0 for design_id, own in rewards.items()}


@dataclass(frozen=True, slots=True)
class Group:
    """Samples whose rewards were compared with each other."""

    role: Role
    key: tuple[str, ...]
    """What its members share: the ids of task and design, names of agent and turn."""
    members: tuple[str, ...]
    """Ids of designs or executions."""
    mean: float
    std: float
    """Of the population."""

    @property
    def zero_variance(self) -> bool:
        """All members have one reward, so that none has an advantage over another."""
        return self.std <= 1e-12


@dataclass(frozen=True)
class Advantages:
    """Advantage of each sample over what it was compared with."""

    designer: Mapping[str, float]
    """By design id."""
    executor: Mapping[str, float]
    """By execution id: of all generated tokens of the execution, unless `turns` has one for the turn."""
    groups: tuple[Group, ...]
    turns: Mapping[TurnKey, float] = field(default_factory=dict)

    @property
    def zero_variance_groups(self) -> tuple[Group, ...]:
        return tuple(group for group in self.groups if group.zero_variance)

    def has_signal(self, role: Role, sample_id: str) -> bool:
        """Whether a design or an execution was in at least one group whose rewards differ."""
        return sample_id in self._with_signal[role]

    @cached_property
    def _with_signal(self) -> Mapping[Role, frozenset[str]]:
        roles: tuple[Role, Role] = ("designer", "executor")
        return {
            role: frozenset(
                member
                for group in self.groups
                if group.role == role and not group.zero_variance
                for member in group.members
            )
            for role in roles
        }
