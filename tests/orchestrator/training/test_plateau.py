"""When a stage ends early, and the plan that comes of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from troupe_orchestrator.run_config import ConfigError, Plateau, RunConfig, parse_run_config
from troupe_orchestrator.stages import StepPlan, last_step, plan_step
from troupe_orchestrator.training.plateau import has_plateaued, validated

SUCCESSES = st.lists(st.floats(0, 1), max_size=20)
RULES = st.builds(Plateau, window=st.integers(1, 4), min_improvement=st.floats(0, 0.5), min_steps=st.integers(1, 5))


def config(lengths: list[int], repeat: bool = True, **until: object) -> RunConfig:
    stages = [
        {"train": "executor" if number % 2 else "designer", "steps": steps, "until": until or "plateau"}
        for number, steps in enumerate(lengths)
    ]
    values = {"dataset": {"train": "x"}, "steps": sum(lengths), "stages": stages, "repeat": repeat}
    return RunConfig.model_validate(values | {"validation": {"dataset": "held", "every": 1}})


@given(RULES, SUCCESSES)
def test_a_stage_ends_only_after_a_whole_window_without_gain_and_its_fewest_steps(
    rule: Plateau, successes: list[float]
) -> None:
    ends = has_plateaued(rule, rule.min_steps, successes)
    assert not has_plateaued(rule, rule.min_steps - 1, successes)
    if len(successes) <= rule.window:
        assert not ends
        return
    best = max(successes[: -rule.window])
    assert ends == all(each <= best + rule.min_improvement for each in successes[-rule.window :])


@given(RULES, st.floats(0, 1), st.integers(1, 10))
def test_a_success_that_stays_the_same_is_a_plateau_as_soon_as_the_window_is_full(
    rule: Plateau, success: float, count: int
) -> None:
    assert has_plateaued(rule, rule.min_steps, [success] * count) == (count > rule.window)


def test_a_validation_of_which_an_item_is_missing_does_not_count() -> None:
    whole, partial = ({"validation_success": 0.5, "validation_coverage": each} for each in (1.0, 0.9))
    assert validated([whole, {"success": 1.0}, partial, whole]) == [0.5, 0.5]


@st.composite
def walks(draw: st.DrawFn) -> tuple[RunConfig, list[int]]:
    """A repeating plan, and steps with which stages of it ended early."""
    plan = config(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    ended: list[int] = []
    for step in range(1, 40):
        if plan_step(plan, step, ended=ended).until is not None and draw(st.booleans()):
            ended.append(step)
    return plan, ended


def place(plan: StepPlan) -> tuple[int, int]:
    return plan.stage, plan.step_in_stage


@given(walks())
def test_the_plan_is_what_one_gets_by_counting_step_after_step(walk: tuple[RunConfig, list[int]]) -> None:
    plan, ended = walk
    stage, in_stage = 1, 0
    for step in range(1, 60):
        steps = plan.stages[(stage - 1) % len(plan.stages)].steps
        if in_stage == steps or step - 1 in ended:
            stage, in_stage = stage + 1, 0
        in_stage += 1
        found = plan_step(plan, step, ended=ended)
        assert place(found) == (stage, in_stage)
        assert found.trains is plan.stages[(stage - 1) % len(plan.stages)].train
        # What ends later changes nothing of what was before.
        assert found == plan_step(plan, step, ended=[each for each in ended if each < step])


def test_a_plan_that_does_not_repeat_ends_with_its_last_stage() -> None:
    plan = config([4, 3], repeat=False)
    assert last_step(plan, 7) == 7
    assert last_step(plan, 7, [2]) == 5
    assert last_step(plan, 7, [2, 4]) == 4
    assert last_step(plan, 3, [2]) == 3
    assert place(plan_step(plan, 5, ended=[2])) == (2, 3)
    with pytest.raises(ValueError, match="lies beyond the plan"):
        plan_step(plan, 6, ended=[2])
    assert last_step(config([4, 3]), 7, [2]) == 7


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stages: [{train: both, steps: 2, until: plateau}]", "add a `validation` section"),
        (
            "stages: [{train: both, steps: 2, until: {min_steps: 3}}]\nvalidation: {dataset: h}",
            "is 3, the stage has 2 steps at most",
        ),
        ("stages: [{train: both, steps: 2, until: {windows: 3}}]\nvalidation: {dataset: h}", "unknown key"),
        ("stages: [{train: both, steps: 2, until: never}]\nvalidation: {dataset: h}", "until"),
    ],
)
def test_a_rule_that_cannot_be_used_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_run_config(f"dataset: {{train: t}}\nsteps: 2\n{text}")
    assert said in str(refused.value)


def test_plateau_by_name_is_the_rule_with_its_defaults() -> None:
    assert config([3]).stages[0].until == Plateau()
    assert config([3], window=2).stages[0].until == Plateau(window=2)
