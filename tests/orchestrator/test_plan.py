"""What a run would take, reckoned before it starts."""

import pytest
from troupe.v1 import policy_pb2, training_pb2
from troupe_contracts.errors import InvalidArgument
from troupe_orchestrator.run_config import RunConfig
from troupe_orchestrator.stages import plan_step
from troupe_orchestrator.training.held_out import HeldOut
from troupe_orchestrator.training.plan import (
    MAX_STAGES,
    PolicyDescription,
    description_of,
    kv_bytes_per_token,
    plan_message,
    step_bounds,
)

POLICY = PolicyDescription("p", ("designer", "executor"), 1000, 2000, 64, 512, 128, 2)


def config(**changes: object) -> RunConfig:
    return RunConfig.model_validate(
        {
            "dataset": {"train": "x"},
            "steps": 12,
            "stages": [{"train": "executor", "steps": 2}, {"train": "designer", "steps": 3, "designs": 3}],
            "rollout": {"tasks_per_step": 4, "designs": 2, "executions": 5},
            "sampling": {"designer": {"max_tokens": 10}, "executor": {"max_tokens": 20}},
            "budgets": {"agent_calls": 6, "tokens": 100},
            **changes,
        }
    )


def estimate(plan: training_pb2.RunPlan, name: str) -> training_pb2.PlanEstimate:
    (found,) = [each for each in plan.estimates if name in each.name]
    return found


def test_the_stages_are_those_of_the_steps() -> None:
    run = config()
    spans = [(each.stage, each.trains, each.first_step, each.last_step) for each in plan_message(run, 9, []).stages]
    covered = [(plan.stage, plan.trains.value) for step in range(1, 13) for plan in [plan_step(run, step)]]
    assert [(stage, trains) for stage, trains, first, last in spans for _ in range(first, last + 1)] == covered
    assert spans[-1] == (5, "executor", 11, 12)


def test_a_steps_bounds_follow_from_its_shape() -> None:
    bounds = step_bounds(config(), plan_step(config(), 1), tasks=9)
    assert (bounds.tasks, bounds.designer_sequences, bounds.executor_sequences) == (4, 8, 280)
    assert (bounds.designer_tokens, bounds.executor_tokens) == (80, 4800)
    assert bounds.trained_sequences == 280
    assert step_bounds(config(), plan_step(config(), 3), tasks=2).trained_sequences == 6


def test_tokens_are_summed_over_all_rounds_without_walking_the_steps() -> None:
    run = config()
    by_step = [step_bounds(run, plan_step(run, step), 9) for step in range(1, 13)]
    whole = sum(bounds.designer_tokens + bounds.executor_tokens for bounds in by_step)
    tokens = estimate(plan_message(run, 9, []), "generated tokens of the steps")
    assert (tokens.value, tokens.bound) == (whole, True)
    assert estimate(plan_message(config(steps=2**31 - 1), 9, []), "generated tokens of the steps").value > 1e12


def test_validations_are_reckoned_beside_the_steps() -> None:
    run = config(validation={"dataset": "held.jsonl", "every": 5, "samples": 3})
    held = HeldOut("held.jsonl", b"x" * 1000, 7)
    tokens = estimate(plan_message(run, 9, [], held), "generated tokens of the validations")
    an_execution = min(run.budgets.tokens + 20, (run.budgets.agent_calls + 1) * 20)
    assert (tokens.value, tokens.bound) == (2 * 7 * 3 * (10 + an_execution), True)
    disk = estimate(plan_message(run, 9, [], held), "trees and problem files of the validations")
    assert disk.value == tokens.value * 14 + 1000
    assert not [each for each in plan_message(run, 9, []).estimates if "validations" in each.name]


def test_of_many_stages_the_first_are_listed() -> None:
    assert len(plan_message(config(steps=10**6), 9, []).stages) == MAX_STAGES


def test_memory_and_checkpoints_are_estimates_with_their_formula() -> None:
    plan = plan_message(config(checkpoint={"keep": 3}), 9, [POLICY])
    learner = estimate(plan, "learner memory")
    assert (learner.value, learner.bound) == (2000 + 1000 * 28, False)
    assert "8 moments" in learner.formula
    assert estimate(plan, "one checkpoint").value == 2000 + 12_000
    assert estimate(plan, "checkpoints of policy").value == 4 * 14_000
    # 4 tasks x 3 designs, and 5 executions of each.
    assert estimate(plan, "keys and values").value == 64 * 512 * (12 + 60)


def test_without_an_undo_copy_less_memory_is_due() -> None:
    keeping = config(optimization={"on_switch": "keep"})
    assert estimate(plan_message(keeping, 9, [POLICY]), "learner memory").value == 2000 + 1000 * 16


def test_keys_and_values_are_read_off_the_projections() -> None:
    tensors = [
        policy_pb2.TensorSpec(name=f"model.layers.{layer}.self_attn.{part}_proj.weight", shape=[width, 8], dtype="BF16")
        for layer in range(2)
        for part, width in (("q", 32), ("k", 16), ("v", 16))
    ]
    assert kv_bytes_per_token(policy_pb2.WeightManifest(tensors=tensors)) == 2 * (16 + 16) * 2
    assert kv_bytes_per_token(policy_pb2.WeightManifest()) == 0


def test_a_description_that_cannot_be_one_is_refused_by_its_field() -> None:
    with pytest.raises(InvalidArgument, match=r"policies\.policy_id"):
        description_of(training_pb2.PolicyDescription(roles=["executor"]))
    with pytest.raises(InvalidArgument, match=r"policies\.roles"):
        description_of(training_pb2.PolicyDescription(policy_id="p", roles=["judge"]))
