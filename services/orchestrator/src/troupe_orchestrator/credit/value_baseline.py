"""`value_baseline`: the reward minus a learned value of the task's prompt, for each role its own.

The values come from the learner's value heads and were computed before the rewards were known, so the baseline does not
depend on the sample (`docs/method.md`, equation 6). Groups are formed for the report only.
"""

from pydantic import BaseModel, ConfigDict

from troupe_orchestrator.credit.groups import designer_groups, executor_groups
from troupe_orchestrator.credit.types import Advantages, OutcomeError, Outcomes, Values


class ValueBaselineOptions(BaseModel):
    """`value_baseline` has no options."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def value_baseline(outcomes: Outcomes, options: ValueBaselineOptions, values: Values | None = None) -> Advantages:
    """Advantages over given values.

    Raises:
        OutcomeError: the value of a task is missing.
    """
    if values is None:
        raise OutcomeError("value_baseline needs the values of the tasks: ask the learner's Score for them")
    for role, known in (("designer", values.designer), ("executor", values.executor)):
        missing = sorted({design.task_id for design in outcomes.designs} - known.keys())
        if missing:
            raise OutcomeError(f"no {role} value for task {missing[0]} ({len(missing)} missing in all)")
    return Advantages(
        designer={
            design.design_id: outcomes.design_rewards[design.design_id] - values.designer[design.task_id]
            for design in outcomes.designs
        },
        executor={
            execution.execution_id: execution.reward_executor - values.executor[execution.task_id]
            for execution in outcomes.executions
        },
        groups=designer_groups(outcomes) + executor_groups(outcomes, "task"),
    )
