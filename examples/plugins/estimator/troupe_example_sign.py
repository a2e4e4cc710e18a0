"""Estimator `sign`: +scale above the mean of the group, −scale below it, whatever the size of the rewards."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict
from troupe_orchestrator.credit.groups import designer_groups, executor_groups, executor_rewards
from troupe_orchestrator.credit.registry import Estimator
from troupe_orchestrator.credit.types import Advantages, Group, Outcomes, Values


class SignOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    scale: float = 1.0


def estimate(outcomes: Outcomes, options: SignOptions, values: Values | None) -> Advantages:
    designs, executions = designer_groups(outcomes), executor_groups(outcomes, "task")

    def signs(groups: tuple[Group, ...], rewards: Mapping[str, float]) -> dict[str, float]:
        above = {sample: rewards[sample] - group.mean for group in groups for sample in group.members}
        return {sample: options.scale * ((excess > 0) - (excess < 0)) for sample, excess in above.items()}

    rewards = executor_rewards(outcomes)
    return Advantages(signs(designs, outcomes.design_rewards), signs(executions, rewards), designs + executions)


sign = Estimator(SignOptions, estimate)
