"""The stage plan: which role a step trains, and how. Pure.

A step's stage is a function of the config and of the steps with which stages ended early (`training.plateau`); those are
part of what is committed, so the plan of a run that was interrupted is that of one that was not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from troupe_orchestrator.run_config import Plateau, RunConfig, Trains


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
    until: Plateau | None
    """What ends the stage before its last step; None with that step."""


def plan_step(config: RunConfig, step: int, before_plan: Trains | None = None, ended: Sequence[int] = ()) -> StepPlan:
    """The plan of `step` (from 1).

    Args:
        before_plan: what the step before the plan's first one trained, where a run forked from another begins a plan of
            its own; None without one.
        ended: steps with which a stage ended before it had all its steps, in order.

    Raises:
        ValueError: the step lies beyond the plan.
    """
    if step < 1:
        raise ValueError(f"steps count from 1, got {step}")
    number, start = _stage_of(config, step, ended)
    stage, offset = config.stages[(number - 1) % len(config.stages)], step - 1 - start
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
        until=stage.until if offset + 1 < stage.steps else None,
    )


def last_step(config: RunConfig, steps: int, ended: Sequence[int] = ()) -> int:
    """The last step of a plan of at most so many: stages that ended early may leave a plan that does not repeat none."""
    if config.repeat or not ended:
        return steps
    number, _ = _stage_of(config, ended[-1], ended[:-1])
    return min(steps, ended[-1] + sum(stage.steps for stage in config.stages[number:]))


def _stage_of(config: RunConfig, step: int, ended: Sequence[int]) -> tuple[int, int]:
    """Number of a step's stage, and the step before its first one."""
    number, start = 1, 0
    for end in ended:
        if end >= step:
            break
        number, start = _walk(config, end, number, start)[0] + 1, end
    return _walk(config, step, number, start)


def _walk(config: RunConfig, step: int, number: int, start: int) -> tuple[int, int]:
    """The same, where the stage of that number begins after `start` and none ends early from there on."""
    stages = len(config.stages)
    planned = sum(stage.steps for stage in config.stages)
    rounds = (step - 1 - start) // planned
    number, start = number + rounds * stages, start + rounds * planned
    while step > start + (steps := config.stages[(number - 1) % stages].steps):
        number, start = number + 1, start + steps
    if number > stages and not config.repeat:
        raise ValueError(f"step {step} lies beyond the plan, whose last stage ended with step {start}")
    return number, start
