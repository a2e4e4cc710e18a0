"""Run conditions: what pauses a run, and what a resume acknowledges."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from troupe_orchestrator.run_config import Conditions
from troupe_orchestrator.training.conditions import ConditionWatch, StepMetrics, Violation, finite

OFF: dict[str, object] = {
    "non_finite": False,
    "entropy_below": None,
    "reward_fall_above": None,
    "valid_scripts_below": None,
    "zero_variance_above": None,
    "mismatch_kl_above": None,
    "probe_error_above": None,
}


def watched(steps: list[tuple[str, dict[str, float]]], **conditions: object) -> list[list[Violation]]:
    """What pauses after each of these steps (trained role, metrics), with only the given conditions on."""
    watch = ConditionWatch(Conditions.model_validate(OFF | conditions))
    return [watch.observe(StepMetrics(number, trains, values)) for number, (trains, values) in enumerate(steps, 1)]


def executor(name: str, *values: float) -> list[tuple[str, dict[str, float]]]:
    return [("executor", {name: value}) for value in values]


@pytest.mark.parametrize(
    ("option", "threshold", "metric", "good", "bad", "reason"),
    [
        ("entropy_below", 0.1, "learner_entropy", 0.2, 0.05, "EntropyCollapse"),
        ("entropy_below", 0.1, "learner_p/entropy", 0.2, 0.05, "EntropyCollapse"),
        ("valid_scripts_below", 0.5, "valid_scripts", 0.6, 0.4, "FewValidScripts"),
        ("zero_variance_above", 0.5, "zero_variance", 0.4, 0.6, "NoVariance"),
        ("mismatch_kl_above", 0.1, "learner_mismatch_kl", 0.05, 0.2, "LearnerEngineMismatch"),
        ("probe_error_above", 0.01, "probe_mean_error", 0.001, 0.02, "ProbeError"),
    ],
)
def test_a_mean_beyond_its_threshold_pauses_and_names_value_threshold_and_remedy(
    option: str, threshold: float, metric: str, good: float, bad: float, reason: str
) -> None:
    assert watched(executor(metric, good, good), window=2, **{option: threshold}) == [[], []]
    first, (violation,) = watched(executor(metric, bad, bad), window=2, **{option: threshold})
    assert first == []
    assert (violation.reason, violation.metric, violation.threshold) == (reason, metric, threshold)
    assert violation.value == pytest.approx(bad)
    assert option in violation.message
    assert violation.remedy
    assert watched(executor(metric, bad, bad), window=2) == [[], []]


def test_a_reward_that_falls_from_its_best_window_pauses_and_one_that_was_always_low_does_not() -> None:
    fallen = executor("reward_executor", 0.9, 0.9, 0.5, 0.1, 0.1)
    assert [len(each) for each in watched(fallen, window=2, reward_fall_above=0.5)] == [0, 0, 0, 1, 0]
    low = executor("reward_executor", 0.1, 0.1, 0.1, 0.1)
    assert not any(watched(low, window=2, reward_fall_above=0.05))


def test_a_metric_that_is_not_finite_pauses_at_once() -> None:
    metrics = finite({"learner_loss": math.nan, "learner_grad_norm": math.inf, "success": 0.5})
    assert metrics == {"non_finite/learner_loss": 1.0, "non_finite/learner_grad_norm": 1.0, "success": 0.5}
    ((violation,),) = watched([("both", metrics)], non_finite=True)
    assert violation.reason == "NonFinite"
    assert "learner_grad_norm, learner_loss of step 1" in violation.message
    assert watched([("both", metrics)]) == [[]]


def test_steps_of_another_role_do_not_count() -> None:
    steps = [("executor", {"learner_entropy": 0.01}), ("designer", {"learner_entropy": 0.01})] * 2
    assert [len(each) for each in watched(steps, window=2, entropy_below=0.1)] == [0, 0, 1, 1]
    assert not any(watched(steps[:2], window=2, entropy_below=0.1))


def test_what_was_resumed_past_pauses_again_only_when_it_was_clear_or_lasts() -> None:
    bad, good = 0.01, 0.5
    lasting = watched(executor("learner_entropy", *[bad] * 8), window=1, entropy_below=0.1, repeat_after=3)
    assert [len(each) for each in lasting] == [1, 0, 0, 1, 0, 0, 1, 0]
    returning = watched(executor("learner_entropy", bad, good, bad), window=1, entropy_below=0.1, repeat_after=9)
    assert [len(each) for each in returning] == [1, 0, 1]


def test_an_acknowledged_condition_of_one_role_is_not_forgotten_by_steps_of_the_other() -> None:
    steps = [("executor", {"learner_entropy": 0.01}), ("designer", {"learner_entropy": 0.9})] * 3
    assert [len(each) for each in watched(steps, window=1, entropy_below=0.1, repeat_after=9)] == [1, 0, 0, 0, 0, 0]


def test_a_run_with_good_metrics_is_never_paused_by_the_defaults() -> None:
    good = {"learner_entropy": 0.3, "valid_scripts": 0.7, "zero_variance": 0.5, "reward_executor": 0.4}
    watch = ConditionWatch(Conditions())
    assert not any(watch.observe(StepMetrics(step, "executor", good)) for step in range(1, 30))


@given(st.lists(st.floats(0, 1), max_size=40), st.integers(1, 5), st.integers(1, 8), st.integers(0, 40))
def test_a_restart_decides_as_an_undisturbed_run(values: list[float], window: int, repeat: int, crash: int) -> None:
    conditions = Conditions.model_validate(OFF | {"entropy_below": 0.3, "window": window, "repeat_after": repeat})
    steps = [StepMetrics(number, "both", {"learner_entropy": value}) for number, value in enumerate(values, 1)]
    whole = ConditionWatch(conditions)
    undisturbed = [whole.observe(step) for step in steps]
    again = ConditionWatch(conditions)
    for step in steps[:crash]:
        again.observe(step)
    assert [again.observe(step) for step in steps[crash:]] == undisturbed[crash:]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["designer", "executor"]),
            st.dictionaries(st.sampled_from(["learner_entropy", "reward_executor"]), st.floats(0, 1)),
            st.booleans(),
        )
    )
)
def test_a_watch_that_goes_on_from_another_ones_state_answers_as_if_it_had_seen_all(
    steps: list[tuple[str, dict[str, float], bool]],
) -> None:
    chosen = OFF | {"entropy_below": 0.5, "reward_fall_above": 0.3, "window": 2, "repeat_after": 3}
    conditions = Conditions.model_validate(chosen)
    undisturbed, interrupted = ConditionWatch(conditions), ConditionWatch(conditions)
    for number, (trains, metrics, restarts) in enumerate(steps, 1):
        if restarts:
            interrupted = ConditionWatch(conditions, json.loads(json.dumps(interrupted.state())))
        told = StepMetrics(number, trains, metrics)
        assert interrupted.observe(told) == undisturbed.observe(told)
