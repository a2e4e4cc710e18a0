"""Batches to train on."""

import numpy as np
from troupe.v1 import learner_pb2

# Fewer than the tiny model has: its byte alphabet alone is this large.
VOCABULARY = 256


def make_sequences(count: int, seed: int = 0, longest: int = 40) -> list[learner_pb2.Sequence]:
    """Random tokens, about half of them trained, normalised as `token_mean` does."""
    random = np.random.default_rng(seed)
    sequences = []
    for index in range(count):
        length = int(random.integers(8, longest + 1))
        weights = (random.random(length) < 0.5).astype(np.float32)
        weights[0], weights[-1] = 0, 1
        sequences.append(
            learner_pb2.Sequence(
                id=f"conversation-{index}",
                token_ids=random.integers(0, VOCABULARY, length).tolist(),
                weights=weights.tolist(),
                advantages=[float(random.normal())] * length,
                behaviour_log_probs=(weights * -float(np.log(VOCABULARY))).tolist(),
            )
        )
    total = sum(sum(each.weights) for each in sequences)
    for each in sequences:
        each.weights[:] = [weight / total for weight in each.weights]
    return sequences
