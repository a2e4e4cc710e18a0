"""The stage plan: which role each step trains."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from troupe_orchestrator.run_config import ConfigError, RunConfig, Trains, parse_run_config
from troupe_orchestrator.stages import plan_step


def config(**changes: object) -> RunConfig:
    values: dict[str, object] = {
        "dataset": {"train": "train.jsonl"},
        "steps": 12,
        "stages": [{"train": "executor", "steps": 2}, {"train": "designer", "steps": 3}],
    }
    return RunConfig.model_validate(values | changes)


def test_stages_alternate_and_repeat() -> None:
    trains = [plan_step(config(), step).trains.value[0] for step in range(1, 13)]
    assert "".join(trains) == "eedddeedddee"


def test_stage_numbers_count_on_over_repeats() -> None:
    assert [plan_step(config(), step).stage for step in range(1, 13)] == [1, 1, 2, 2, 2, 3, 3, 4, 4, 4, 5, 5]


def test_one_step_alternation_and_both_are_legal_plans() -> None:
    alternating = config(stages=[{"train": "executor", "steps": 1}, {"train": "designer", "steps": 1}])
    assert plan_step(alternating, 2).trains is Trains.DESIGNER
    coupled = config(stages=[{"train": "both", "steps": 1}])
    assert {plan_step(coupled, step).trains for step in range(1, 13)} == {Trains.BOTH}


def test_the_learning_rate_warms_up_at_the_start_of_every_stage() -> None:
    warm = config(optimization={"learning_rate": 1.0, "warmup_steps": 1})
    assert [plan_step(warm, step).learning_rate for step in range(1, 6)] == [0.5, 1.0, 0.5, 1.0, 1.0]


def test_moments_are_reset_where_a_later_stage_begins_and_only_if_asked() -> None:
    assert [plan_step(config(), step).resets_optimizer for step in range(1, 7)] == [
        False, False, True, True, True, True,
    ]  # fmt: skip
    keeping = config(optimization={"on_switch": "keep"})
    assert not any(plan_step(keeping, step).resets_optimizer for step in range(1, 13))


def test_a_plan_that_begins_after_another_resets_the_moments_if_that_trained_the_other_role() -> None:
    assert not plan_step(config(), 1, before_plan=Trains.EXECUTOR).resets_optimizer
    assert plan_step(config(), 1, before_plan=Trains.DESIGNER).resets_optimizer


def test_a_stage_may_have_its_own_rate_and_shape() -> None:
    own = config(stages=[{"train": "executor", "steps": 5, "learning_rate": 0.25, "designs": 8, "executions": 1}])
    plan = plan_step(own, 1)
    assert (plan.learning_rate, plan.designs, plan.executions) == (0.25, 8, 1)


def test_a_plan_that_does_not_repeat_must_cover_all_steps() -> None:
    with pytest.raises(ValueError, match="the plan has 5 steps and `steps` asks for 12"):
        config(repeat=False)


def test_a_step_beyond_a_plan_that_does_not_repeat_is_refused() -> None:
    with pytest.raises(ValueError, match="lies beyond the plan"):
        plan_step(config(repeat=False, steps=5), 6)


@given(st.integers(1, 500))
def test_every_step_lies_inside_its_stage(step: int) -> None:
    plan = plan_step(config(), step)
    length = {Trains.EXECUTOR: 2, Trains.DESIGNER: 3}[plan.trains]
    assert 1 <= plan.step_in_stage <= length


def test_an_unknown_key_is_refused_by_its_full_name() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_run_config(
            "dataset: {train: a.jsonl}\nsteps: 1\nstages: [{train: both, steps: 1}]\nrollout: {desings: 4}\nlr: 1\n"
        )
    assert ("rollout.desings", "unknown key") in caught.value.problems
    assert ("lr", "unknown key") in caught.value.problems


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "", "steps: many"])
def test_what_is_no_config_is_refused_with_a_reason(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_run_config(text)
