"""From trees to batches: who is trained, with which advantage and weight."""

import dataclasses

import numpy as np
import pytest
from troupe_contracts.batch import digest, validate
from troupe_orchestrator.run_config import RunConfig
from troupe_orchestrator.stages import plan_step
from troupe_orchestrator.training.assembly import NoTokensError, assemble_batches, outcomes_of
from troupe_orchestrator.training.metrics import rollout_metrics
from troupe_orchestrator.tree import (
    ConversationPayload,
    DesignPayload,
    ExecutionPayload,
    ExecutionStatus,
    Node,
    NodeKind,
    TaskPayload,
    TermRecord,
    TokenRecord,
    Tree,
)

ONE_POLICY = {"designer": "p", "executor": "p"}
TWO_POLICIES = {"designer": "d", "executor": "e"}


def config(trains: str, **credit: object) -> RunConfig:
    return RunConfig.model_validate(
        {
            "dataset": {"train": "x"},
            "steps": 1,
            "stages": [{"train": trains, "steps": 1}],
            "credit": {"options": {"std": "population", "epsilon": 0.0}, **credit},
        }
    )


def tokens(generated: int) -> TokenRecord:
    return TokenRecord(
        token_ids=np.arange(2 + generated, dtype=np.int32),
        run_generated=np.array([False, True]),
        run_lengths=np.array([2, generated], dtype=np.int32),
        run_versions=("", "a:0"),
        log_probs=np.full(generated, -0.5, dtype=np.float32),
    )


def conversation(name: str, parent: str, role: str, generated: int) -> Node:
    payload = ConversationPayload(
        role="designer" if role == "designer" else "executor",
        agent="a",
        conversation_id=name,
        messages=(),
        stop_reasons=("end_of_turn",),
    )
    return Node(name, parent, NodeKind.CONVERSATION, 0, payload, tokens(generated))


def execution(name: str, design: str, success: bool) -> Node:
    terms = tuple(TermRecord(role, "success", float(success), 1.0) for role in ("designer", "executor"))  # type: ignore[arg-type]
    payload = ExecutionPayload(
        status=ExecutionStatus.OK,
        reason="",
        result="",
        answer="",
        success=success,
        parseable=True,
        executed_pattern="single",
        visits=(),
        tool_runs=(),
        terms=terms,
        flags=(),
        agent_calls=1,
        cpu_seconds=0.0,
        wall_seconds=0.0,
        waiting_seconds=0.0,
        profile="full",
    )
    return Node(name, design, NodeKind.EXECUTION, 0, payload)


def tree() -> Tree:
    """Two valid designs with two executions each (one right, none right) and an invalid one."""
    nodes = [Node("t", "", NodeKind.TASK, 0, TaskPayload("task", "calc", "math", "?"))]
    for design, successes in (("d0", (True, False)), ("d1", (False, False)), ("d2", None)):
        problems = () if successes is not None else ("syntax error",)
        nodes.append(Node(design, "t", NodeKind.DESIGN, 0, DesignPayload("", "", problems, "")))
        nodes.append(conversation(f"{design}-c", design, "designer", 4))
        for number, success in enumerate(successes or ()):
            nodes.append(execution(f"{design}-e{number}", design, success))
            nodes += [conversation(f"{design}-e{number}-c{c}", f"{design}-e{number}", "executor", 3) for c in range(2)]
    return Tree(tuple(nodes))


def batches(trains: str, policies: dict[str, str], **credit: object) -> dict[str, list]:  # type: ignore[type-arg]
    run = config(trains, **credit)
    return {batch.policy_id: batch.sequences for batch in assemble_batches([tree()], plan_step(run, 1), run, policies)}


def test_a_stage_sends_only_the_sequences_of_the_role_it_trains() -> None:
    executor = batches("executor", ONE_POLICY)
    assert all("-e" in sequence.id for sequence in executor["p"])
    designer = batches("designer", ONE_POLICY)
    assert {sequence.id for sequence in designer["p"]} == {"d0-c", "d1-c", "d2-c"}


def test_an_invalid_design_is_trained_on_with_reward_0() -> None:
    sequences = {sequence.id: sequence for sequence in batches("designer", ONE_POLICY)["p"]}
    rewards = np.array([0.5, 0.0, 0.0])
    expected = (rewards - rewards.mean()) / rewards.std()
    found = [sequences[f"d{number}-c"].advantages.max(initial=-9, where=sequences[f"d{number}-c"].weights > 0)
             for number in range(3)]  # fmt: skip
    assert found == pytest.approx(expected.tolist())


def test_both_roles_of_a_shared_policy_are_one_batch_and_of_two_policies_two() -> None:
    assert set(batches("both", ONE_POLICY)) == {"p"}
    two = batches("both", TWO_POLICIES)
    assert set(two) == {"d", "e"}
    assert all("-e" in sequence.id for sequence in two["e"])
    assert not any("-e" in sequence.id for sequence in two["d"])


def test_inserted_tokens_have_weight_0_and_generated_ones_sum_to_the_rule() -> None:
    sequences = batches("executor", ONE_POLICY)["p"]
    assert all(sequence.weights[:2].tolist() == [0, 0] for sequence in sequences)
    assert sum(float(sequence.weights.sum()) for sequence in sequences) == pytest.approx(1.0)


def test_every_sequence_is_one_that_the_learner_accepts() -> None:
    for sequence in batches("both", ONE_POLICY)["p"]:
        validate(sequence.to_message())


def test_sequences_without_advantage_are_counted_in_the_normalisation_and_not_sent() -> None:
    run = config("executor", options={"group": "design", "std": "population", "epsilon": 0.0})
    (batch,) = assemble_batches([tree()], plan_step(run, 1), run, ONE_POLICY)
    assert {sequence.id[:2] for sequence in batch.sequences} == {"d0"}
    assert sum(float(sequence.weights.sum()) for sequence in batch.sequences) == pytest.approx(0.5)


def test_filtered_groups_leave_the_normalisation() -> None:
    options = {"group": "design", "std": "population", "epsilon": 0.0}
    sequences = batches("executor", ONE_POLICY, options=options, filter_zero_variance=True)["p"]
    assert sum(float(sequence.weights.sum()) for sequence in sequences) == pytest.approx(1.0)


def test_the_digest_is_that_of_what_is_sent() -> None:
    run = config("both")
    (batch,) = assemble_batches([tree()], plan_step(run, 1), run, ONE_POLICY)
    assert batch.digest == digest(sequence.to_message() for sequence in batch.sequences)


def test_a_trained_role_without_tokens_is_refused_by_name() -> None:
    nodes = [dataclasses.replace(node, tokens=None) for node in tree().nodes]
    run = config("executor")
    with pytest.raises(NoTokensError, match="trained role executor has no tokens"):
        assemble_batches([Tree(tuple(nodes))], plan_step(run, 1), run, ONE_POLICY)


def test_success_counts_the_executions_that_invalid_designs_were_due() -> None:
    metrics = rollout_metrics([tree()])
    assert metrics["success"] == pytest.approx(1 / 6)
    assert metrics["success_of_valid"] == pytest.approx(1 / 4)
    assert metrics["valid_scripts"] == pytest.approx(2 / 3)


def test_outcomes_follow_ids_and_not_positions() -> None:
    shuffled = Tree((tree().nodes[0], *reversed(tree().nodes[1:])))
    assert set(outcomes_of([shuffled]).executions) == set(outcomes_of([tree()]).executions)
