"""What runs export, by the events that they store."""

import pytest
from prometheus_client import REGISTRY
from troupe.v1 import training_pb2
from troupe_orchestrator.monitoring.runs import RunMetrics

METRICS = {
    "reward_designer": 0.25,
    "reward_executor": 0.5,
    "success": 0.75,
    "seconds_sync": 3.0,
    "seconds_queue_sum": 9.0,
    "learner_mismatch_kl": 0.01,
    "drop_rate/prompt_lt_128": 0.1,
}


def committed(step: int, **metrics: float) -> training_pb2.RunEvent:
    return training_pb2.RunEvent(step=step, step_committed=training_pb2.StepCommitted(metrics=METRICS | metrics))


def became(state: str, step: int = 0) -> training_pb2.RunEvent:
    number = training_pb2.RunState.Value(f"RUN_STATE_{state}")
    return training_pb2.RunEvent(step=step, state_changed=training_pb2.StateChanged(state=number))


def value(name: str, run: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, {"run": run, **labels})


def test_a_committed_step_sets_its_number_and_its_scalars() -> None:
    metrics = RunMetrics()
    metrics.stored("scalars", committed(3))
    metrics.stored("scalars", committed(4, success=1.0))
    assert value("troupe_run_step", "scalars") == 4
    assert value("troupe_step_reward", "scalars", role="designer") == 0.25
    assert value("troupe_step_success", "scalars") == 1.0
    assert value("troupe_step_seconds", "scalars", part="sync") == 3.0
    assert value("troupe_step_seconds", "scalars", part="queue_sum") is None
    assert value("troupe_step_drop_rate", "scalars", question="prompt_lt_128") == 0.1


def test_scalars_of_the_learner_name_the_policy_where_there_are_two() -> None:
    RunMetrics().stored("two", committed(1, **{"learner_the/designer/mismatch_kl": 0.2}))
    assert value("troupe_step_mismatch_kl", "two", policy="") == 0.01
    assert value("troupe_step_mismatch_kl", "two", policy="the/designer") == 0.2


@pytest.mark.parametrize("ending", ["SUCCEEDED", "FAILED", "CANCELLED"])
def test_of_a_run_that_has_ended_nothing_is_left_but_that_one_has(ending: str) -> None:
    metrics = RunMetrics()
    before = REGISTRY.get_sample_value("troupe_run_endings_total", {"state": ending.lower()}) or 0
    metrics.stored(ending, became("RUNNING"))
    metrics.stored(ending, committed(1))
    metrics.stored(ending, became(ending, 1))
    assert REGISTRY.get_sample_value("troupe_run_endings_total", {"state": ending.lower()}) == before + 1
    left = [
        sample.name for family in REGISTRY.collect() for sample in family.samples if sample.labels.get("run") == ending
    ]
    assert left == []


def test_a_paused_run_is_told_of_with_its_newest_values_until_it_runs_again() -> None:
    metrics = RunMetrics()
    metrics.stored("paused", became("RUNNING"))
    metrics.stored("paused", committed(1))
    metrics.stored("paused", became("PAUSED", 1))
    assert value("troupe_run_state", "paused", state="paused") == 1
    assert value("troupe_run_state", "paused", state="running") is None
    assert value("troupe_step_success", "paused") == 0.75
    metrics.stored("paused", became("RUNNING", 1))
    assert value("troupe_run_state", "paused", state="running") == 1
    assert value("troupe_run_state", "paused", state="paused") is None


def test_conditions_are_counted_by_their_reason() -> None:
    def count() -> float:
        return REGISTRY.get_sample_value("troupe_run_conditions_total", {"reason": "TaskDropped"}) or 0

    before = count()
    RunMetrics().stored("c", training_pb2.RunEvent(condition=training_pb2.Condition(reason="TaskDropped")))
    assert count() == before + 1
