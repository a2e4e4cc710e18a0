"""When a stage ends before it has all its steps: its rule (`until: plateau`) over the validations of its steps.

Decided where a validated step is committed, from committed metrics alone, and stored with the step: a run that is resumed
does not decide it again.
"""

from collections.abc import Iterable, Mapping, Sequence

from troupe.v1 import training_pb2

from troupe_orchestrator.run_config import Plateau
from troupe_orchestrator.stages import StepPlan
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.step_outcomes import metrics_of_steps
from troupe_orchestrator.training.record import Fork


def has_plateaued(rule: Plateau, step_in_stage: int, successes: Sequence[float]) -> bool:
    """Whether a stage has nothing more to gain: none of its last `window` validations had more than `min_improvement` over
    the best of those before.

    Args:
        successes: of the stage's validations, in order.
    """
    earlier, newest = successes[: -rule.window], successes[-rule.window :]
    return bool(earlier) and step_in_stage >= rule.min_steps and max(newest) <= max(earlier) + rule.min_improvement


def validated(steps: Iterable[Mapping[str, float]]) -> list[float]:
    """Success of the steps that were validated, by their metrics. One of which an item is missing cannot be compared, nor
    one whose success is no finite number.
    """
    return [
        each["validation_success"]
        for each in steps
        if each.get("validation_coverage") == 1.0 and "validation_success" in each
    ]


def first_of_stage(plan: StepPlan) -> int:
    """The first step of a step's stage."""
    return plan.step - plan.step_in_stage + 1


async def stage_end(
    database: Database, run_id: str, fork: Fork | None, plan: StepPlan, metrics: Mapping[str, float]
) -> training_pb2.Condition | None:
    """Why the stage of a step that is to be committed ends with it, before its time; None where it does not."""
    if plan.until is None or not validated([metrics]):
        return None
    first = first_of_stage(plan)
    before = fork.validated if fork is not None and first <= fork.step else ()
    committed = await metrics_of_steps(database, run_id, first, plan.step - 1)
    successes = [*before, *validated([*committed, metrics])]
    if not has_plateaued(plan.until, plan.step_in_stage, successes):
        return None
    window, gain = plan.until.window, plan.until.min_improvement
    newest, earlier = max(successes[-window:]), max(successes[:-window])
    return training_pb2.Condition(
        reason="StagePlateau",
        message=f"stage {plan.stage} ends with step {plan.step}: the last {window} validations had a success of "
        f"{newest:.4g} at most, those before {earlier:.4g}, no gain of more than {gain:g} (stages.until)",
        remedy="none needed: the next stage begins",
    )
