"""`leave_one_out`: the groups of `hierarchical`; the baseline of a sample is the mean of the others, without a std.

The baseline does not depend on the sample, so the policy gradient is unbiased (`docs/method.md`, equation 5 and section
"What is unbiased"). A sample that is alone in its group has advantage 0.
"""

from pydantic import BaseModel, ConfigDict

from troupe_orchestrator.credit.groups import designer_groups, executor_groups, executor_rewards
from troupe_orchestrator.credit.groups import leave_one_out as without_oneself
from troupe_orchestrator.credit.types import Advantages, GroupBy, Outcomes, Values


class LeaveOneOutOptions(BaseModel):
    """Options of `leave_one_out`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    group: GroupBy = "task"
    """What an execution is compared with: all of its task, or those of its design."""


def leave_one_out(outcomes: Outcomes, options: LeaveOneOutOptions, values: Values | None = None) -> Advantages:
    """Advantages over the mean of the others. `values` is not used."""
    designs = designer_groups(outcomes)
    executions = executor_groups(outcomes, options.group)
    rewards = executor_rewards(outcomes)
    return Advantages(
        designer={
            sample: advantage
            for group in designs
            for sample, advantage in without_oneself(group, outcomes.design_rewards).items()
        },
        executor={
            sample: advantage for group in executions for sample, advantage in without_oneself(group, rewards).items()
        },
        groups=designs + executions,
    )
