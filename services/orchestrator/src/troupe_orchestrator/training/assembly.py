"""Credits a step's trees and assembles the batch of each policy. Pure: a function of trees, plan and config.

A sequence whose advantages are all 0 adds nothing to any gradient: it counts in the normalisation and is not sent.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray
from troupe_contracts.batch import digest

from troupe_orchestrator.credit.config import estimate
from troupe_orchestrator.credit.normalization import TrainedSequence, token_weights
from troupe_orchestrator.credit.types import (
    Advantages,
    DesignOutcome,
    ExecutionOutcome,
    Outcomes,
    Role,
    TurnOutcome,
)
from troupe_orchestrator.run_config import RunConfig, Trains
from troupe_orchestrator.stages import StepPlan
from troupe_orchestrator.training.batch import TrainingSequence
from troupe_orchestrator.tree import (
    ConversationPayload,
    DesignPayload,
    ExecutionPayload,
    Node,
    NodeKind,
    TaskPayload,
    TermRecord,
    TokenRecord,
    Tree,
)

ROLES: dict[Trains, tuple[Role, ...]] = {
    Trains.EXECUTOR: ("executor",),
    Trains.DESIGNER: ("designer",),
    Trains.BOTH: ("designer", "executor"),
}


class NoTokensError(RuntimeError):
    """A trained role's engine returned no token ids: its transcripts cannot be trained on."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one policy is trained on in a step."""

    policy_id: str
    sequences: list[TrainingSequence]
    digest: bytes


def total_reward(terms: Sequence[TermRecord], role: Role) -> float:
    """A role's reward of an execution."""
    return sum(term.value * term.weight for term in terms if term.role == role)


def outcomes_of(trees: Sequence[Tree]) -> Outcomes:
    """The trees reduced to ids and rewards."""
    designs, executions, turns = [], [], []
    for tree in trees:
        task = tree.root.payload
        assert isinstance(task, TaskPayload)
        for design in tree.of_kind(NodeKind.DESIGN):
            assert isinstance(design.payload, DesignPayload)
            designs.append(DesignOutcome(design.id, task.task_id, valid=not design.payload.problems))
            for execution in tree.children(design.id, NodeKind.EXECUTION):
                assert isinstance(execution.payload, ExecutionPayload)
                executions.append(
                    ExecutionOutcome(
                        execution.id,
                        design.id,
                        task.task_id,
                        reward_executor=total_reward(execution.payload.terms, "executor"),
                        reward_designer=total_reward(execution.payload.terms, "designer"),
                    )
                )
                turns += [
                    TurnOutcome(execution.id, conversation.id, conversation.payload.agent, turn)
                    for conversation in tree.children(execution.id, NodeKind.CONVERSATION)
                    if isinstance(conversation.payload, ConversationPayload) and conversation.tokens is not None
                    for turn in range(int(conversation.tokens.run_generated.sum()))
                ]
    return Outcomes(tuple(designs), tuple(executions), tuple(turns))


def assemble_batches(
    trees: Sequence[Tree], plan: StepPlan, config: RunConfig, policy_of_role: Mapping[str, str]
) -> list[Batch]:
    """The batch of every policy that has something to train on.

    Raises:
        NoTokensError: a trained role's engine gave no tokens.
    """
    advantages = estimate(config.credit, outcomes_of(trees))
    roles = ROLES[plan.trains]
    candidates = [
        (role, sample, node, tokens)
        for role in roles
        for sample, node, tokens in conversations_of(trees, role)
        if not config.credit.filter_zero_variance or advantages.has_signal(role, sample)
    ]
    # Mini-batches are cut in order: by a hash, each gets its share of every role and task. Of the place in the tree, in
    # which the run has no say: a fork cuts as its parent would have.
    places = _places(trees)
    candidates.sort(key=lambda candidate: places[candidate[2].id])
    weights = token_weights(
        (TrainedSequence(node.id, sample, role, tokens.generated_count) for role, sample, node, tokens in candidates),
        config.credit.normalization,
    )
    batches: dict[str, list[TrainingSequence]] = {}
    for role, sample, node, tokens in candidates:
        per_token = _token_advantages(advantages, role, sample, node.id, tokens)
        if not per_token.any():
            continue
        batches.setdefault(policy_of_role[role], []).append(
            TrainingSequence(
                id=node.id,
                token_ids=tokens.token_ids,
                weights=np.where(tokens.generated_mask(), np.float32(weights[node.id]), np.float32(0)),
                advantages=per_token,
                behaviour_log_probs=tokens.aligned_log_probs(),
            )
        )
    return [
        Batch(policy_id, sequences, digest(sequence.to_message() for sequence in sequences))
        for policy_id, sequences in batches.items()
    ]


def _places(trees: Sequence[Tree]) -> dict[str, bytes]:
    """A hash of each conversation's place: task, design, execution, and the conversation's own name."""
    places = {}
    for tree in trees:
        task = tree.root.payload
        assert isinstance(task, TaskPayload)
        for number, design in enumerate(tree.of_kind(NodeKind.DESIGN)):
            parents = [design, *tree.children(design.id, NodeKind.EXECUTION)]
            for index, parent in enumerate(parents):
                for position, node in enumerate(tree.children(parent.id, NodeKind.CONVERSATION)):
                    payload = node.payload
                    name = payload.conversation_id if isinstance(payload, ConversationPayload) else ""
                    key = f"{task.task_id}\x1f{number}\x1f{index}\x1f{name or position}"
                    places[node.id] = blake2b(key.encode(), digest_size=16).digest()
    return places


def advantages_of(trees: Sequence[Tree], config: RunConfig) -> Advantages:
    """The advantages that a step's trees were credited with, for traces."""
    return estimate(config.credit, outcomes_of(trees))


def conversations_of(trees: Sequence[Tree], role: Role) -> Iterator[tuple[str, Node, TokenRecord]]:
    """(sample id, conversation, tokens) of a role's conversations with at least one sampled token."""
    parent_kind = NodeKind.DESIGN if role == "designer" else NodeKind.EXECUTION
    for tree in trees:
        for parent in tree.of_kind(parent_kind):
            for node in tree.children(parent.id, NodeKind.CONVERSATION):
                if node.tokens is None:
                    raise NoTokensError(
                        f"conversation {node.id} of the trained role {role} has no tokens: "
                        "train with an engine that returns token ids"
                    )
                if node.tokens.generated_count:
                    yield parent.id, node, node.tokens


def _token_advantages(
    advantages: Advantages, role: Role, sample: str, conversation: str, tokens: TokenRecord
) -> NDArray[np.float32]:
    """Advantage of every generated token, 0 on inserted ones. Shape: [tokens]."""
    if role == "designer":
        return np.where(tokens.generated_mask(), np.float32(advantages.designer[sample]), np.float32(0))
    of_run = np.zeros(len(tokens.run_lengths), dtype=np.float32)
    for turn, run in enumerate(np.flatnonzero(tokens.run_generated)):
        of_run[run] = advantages.turns.get((conversation, turn), advantages.executor[sample])
    return np.repeat(of_run, tokens.run_lengths)
