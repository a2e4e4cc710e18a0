"""`agent_turn`: each turn is compared with the same turn of the same agent in the task's other executions (AT-GRPO).

The reward of a turn is that of its execution. An execution counts once in a group, also where an agent's name occurs in
several of its conversations. The designer is credited as by `hierarchical`. `docs/method.md`, equation 7.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from troupe_orchestrator.credit.groups import (
    Key,
    StdForm,
    designer_groups,
    executor_rewards,
    group_by,
    standardized,
)
from troupe_orchestrator.credit.types import (
    Advantages,
    Group,
    GroupBy,
    OutcomeError,
    Outcomes,
    TurnKey,
    Values,
)


class AgentTurnOptions(BaseModel):
    """Options of `agent_turn`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    group: GroupBy = "design"
    """Whose executions a turn is compared with. An agent's name means the same thing within one design only."""
    std: StdForm = "unbiased"
    epsilon: Annotated[float, Field(ge=0)] = 1e-6


def agent_turn(outcomes: Outcomes, options: AgentTurnOptions, values: Values | None = None) -> Advantages:
    """Advantages per turn. `values` is not used.

    Raises:
        OutcomeError: there are executions and no turns.
    """
    if outcomes.executions and not outcomes.turns:
        raise OutcomeError("agent_turn needs the turns of the executions")
    rewards = executor_rewards(outcomes)
    turns_of: dict[Key, list[TurnKey]] = {}
    executions_of: dict[Key, dict[str, Key]] = {}
    for turn in outcomes.turns:
        execution = outcomes.execution_by_id[turn.execution_id]
        design = (execution.design_id,) if options.group == "design" else ()
        key = (execution.task_id, *design, turn.agent, str(turn.turn))
        executions_of.setdefault(key, {})[turn.execution_id] = key
        turns_of.setdefault((*key, turn.execution_id), []).append((turn.conversation_id, turn.turn))
    groups: list[Group] = []
    turn_advantages: dict[TurnKey, float] = {}
    for key, keys in executions_of.items():
        (group,) = group_by("executor", keys, rewards)
        groups.append(group)
        for execution_id, advantage in standardized(group, rewards, options.std, options.epsilon).items():
            turn_advantages.update(dict.fromkeys(turns_of[(*key, execution_id)], advantage))
    designs = designer_groups(outcomes)
    return Advantages(
        designer={
            sample: advantage
            for group in designs
            for sample, advantage in standardized(group, outcomes.design_rewards, options.std, options.epsilon).items()
        },
        executor=dict.fromkeys(rewards, 0.0),
        groups=designs + tuple(groups),
        turns=turn_advantages,
    )
