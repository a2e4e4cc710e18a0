"""The stage plan: which role a step trains, and how. Pure; a step's stage is a function of the config alone."""

from dataclasses import dataclass

from troupe_orchestrator.run_config import RunConfig, Trains


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What the plan says of one step."""

    step: int
    stage: int
    """Number of the stage from 1; repeats count on."""
    step_in_stage: int
    """From 1."""
    trains: Trains
    learning_rate: float
    """After warm-up."""
    resets_optimizer: bool
    """The stage forgets the optimizer's moments before its first update."""
    designs: int
    executions: int


def plan_step(config: RunConfig, step: int, before_plan: Trains | None = None) -> StepPlan:
    """The plan of `step` (from 1).

    Args:
        before_plan: what the step before the plan's first one trained, where a run forked from another begins a plan of
            its own; None without one.

    Raises:
        ValueError: the step lies beyond the plan.
    """
    if step < 1:
        raise ValueError(f"steps count from 1, got {step}")
    planned = sum(stage.steps for stage in config.stages)
    rounds, offset = divmod(step - 1, planned)
    if rounds and not config.repeat:
        raise ValueError(f"step {step} lies beyond the plan of {planned} steps")
    number = rounds * len(config.stages)
    for stage in config.stages:
        number += 1
        if offset < stage.steps:
            break
        offset -= stage.steps
    before = config.stages[(number - 2) % len(config.stages)].train if number > 1 else before_plan
    warmup = config.optimization.warmup_steps if stage.warmup_steps is None else stage.warmup_steps
    peak = config.optimization.learning_rate if stage.learning_rate is None else stage.learning_rate
    return StepPlan(
        step=step,
        stage=number,
        step_in_stage=offset + 1,
        trains=stage.train,
        learning_rate=peak * min(1.0, (offset + 1) / (warmup + 1)),
        resets_optimizer=before not in (None, stage.train) and config.optimization.on_switch == "reset",
        designs=stage.designs or config.rollout.designs,
        executions=stage.executions or config.rollout.executions,
    )
