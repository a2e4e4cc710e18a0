"""How far the role that is not trained moves because it shares its weights with the one that is.

Sequences are held that this role sampled at the first step of the stage, with the weights that the stage began with. After
each update the learner scores them again. With r = π_now(token) / π_begin(token), the mean of r - 1 - log r over tokens
sampled from π_begin is an unbiased estimate of KL(π_begin ‖ π_now), in nats per token, and never negative (Schulman,
"Approximating KL divergence", estimator k3).
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from troupe_orchestrator.credit.types import Role
from troupe_orchestrator.run_config import Trains
from troupe_orchestrator.training.assembly import ROLES, conversations_of
from troupe_orchestrator.training.batch import TrainingSequence
from troupe_orchestrator.tree import Tree

_HELD_SEQUENCES = 32


def idle_role(trains: Trains, policy_of_role: Mapping[str, str]) -> Role | None:
    """The role that moves without being trained: it shares a policy with the one that is."""
    trained = ROLES[trains]
    return next(
        (
            role
            for role in ROLES[Trains.BOTH]
            if role not in trained and policy_of_role[role] in {policy_of_role[other] for other in trained}
        ),
        None,
    )


def held_sequences(trees: Sequence[Tree], role: Role) -> list[TrainingSequence]:
    """Some of a role's conversations, chosen by id; a weight of 1 marks the tokens that it sampled."""
    found = sorted(conversations_of(trees, role), key=lambda conversation: conversation[1].id)
    return [
        TrainingSequence(
            id=node.id,
            token_ids=tokens.token_ids,
            weights=tokens.generated_mask().astype(np.float32),
            advantages=np.zeros(len(tokens.token_ids), dtype=np.float32),
            behaviour_log_probs=tokens.aligned_log_probs(),
        )
        for _, node, tokens in found[:_HELD_SEQUENCES]
    ]


def drift(held: Sequence[TrainingSequence], log_probs: Sequence[NDArray[np.float32]]) -> float:
    """KL of what the role was at the stage's begin from what it is now, in nats per sampled token.

    Args:
        log_probs: the learner's, of every token but the first of each sequence.
    """
    sampled = [sequence.weights[1:] > 0 for sequence in held]
    now = np.concatenate([scored[mask] for scored, mask in zip(log_probs, sampled, strict=True)]).astype(np.float64)
    begin = np.concatenate([each.behaviour_log_probs[1:][mask] for each, mask in zip(held, sampled, strict=True)])
    log_ratio = now - begin
    return float(np.mean(np.expm1(log_ratio) - log_ratio)) if len(log_ratio) else 0.0
