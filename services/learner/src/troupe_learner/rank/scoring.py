"""Log-probabilities and entropies of whole sequences under the current weights."""

import numpy as np
import torch
from numpy.typing import NDArray

from troupe_learner.batch_file import BatchArrays
from troupe_learner.packing import deal, microbatches
from troupe_learner.rank.engine import Engine, sum_over_ranks
from troupe_learner.rank.progress import Progress
from troupe_learner.rank.training import build_pass


@torch.no_grad()
def score(
    engine: Engine,
    lengths: NDArray[np.int64],
    token_ids: NDArray[np.int64],
    token_budget: int,
    progress: Progress,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """One value per token but the first of each sequence, end to end; both the same on every rank."""
    ones = np.ones(len(token_ids), dtype=np.float32)
    starts = np.cumsum(lengths) - lengths
    ones[starts] = 0  # nothing predicts the first token
    batch = BatchArrays(tuple("" for _ in lengths), lengths, token_ids, ones, ones, ones)
    # A sequence of one token has nothing to score.
    indices = [index for index, length in enumerate(lengths) if length > 1]
    passes = deal(microbatches([int(each) for each in lengths], indices, token_budget), engine.rank, engine.ranks)
    results = torch.zeros(2, len(token_ids))
    for number, microbatch in enumerate(passes, start=1):
        each = build_pass(batch, microbatch)
        log_probs, entropies = engine.forward(each.wanted)
        progress(number / len(passes))
        if not microbatch.counts:
            continue
        where = np.concatenate(
            [np.arange(starts[index] + 1, starts[index] + lengths[index]) for index in microbatch.sequences]
        )
        results[0, where] = log_probs
        results[1, where] = entropies
    sum_over_ranks(results, engine.ranks)
    kept = results[:, torch.from_numpy(ones > 0)].numpy()
    return kept[0], kept[1]
