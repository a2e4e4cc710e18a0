"""`hierarchical`: the executor-designer hierarchical credit of MetaAgent-X (arXiv 2605.14212), the default.

Designer: the mean reward of a design's N executions, normalised among the M designs of the task.
Executor: the reward of each execution, normalised among all M·N of the task or the N of its design.
`docs/method.md`, equations 2 to 4.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from troupe_orchestrator.credit.groups import (
    StdForm,
    designer_groups,
    executor_groups,
    executor_rewards,
    standardized,
)
from troupe_orchestrator.credit.types import Advantages, GroupBy, Outcomes, Values


class HierarchicalOptions(BaseModel):
    """Options of `hierarchical`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    group: GroupBy = "task"
    """What an execution is compared with: all of its task, or those of its design."""
    std: StdForm = "unbiased"
    """Divisor n − 1, n, or no division at all."""
    epsilon: Annotated[float, Field(ge=0)] = 1e-6
    """Added to the standard deviation."""


def hierarchical(outcomes: Outcomes, options: HierarchicalOptions, values: Values | None = None) -> Advantages:
    """Advantages normalised within groups. `values` is not used."""
    designs = designer_groups(outcomes)
    executions = executor_groups(outcomes, options.group)
    rewards = executor_rewards(outcomes)
    return Advantages(
        designer={
            sample: advantage
            for group in designs
            for sample, advantage in standardized(group, outcomes.design_rewards, options.std, options.epsilon).items()
        },
        executor={
            sample: advantage
            for group in executions
            for sample, advantage in standardized(group, rewards, options.std, options.epsilon).items()
        },
        groups=designs + executions,
    )
