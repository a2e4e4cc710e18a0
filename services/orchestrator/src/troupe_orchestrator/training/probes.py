"""On which sequences an engine must reproduce the learner after a load: fixed ones, and some of the batch.

The fixed ones are the same for every run of a vocabulary: their errors can be compared over steps and runs. Batches have few
of the vocabulary's tokens; these are spread over all of it, so that a row of the embedding or of the output projection that
was left behind shows.
"""

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

FIXED_LENGTHS: Final = (8, 32, 128)
"""Tokens: positions near the start and beyond the first block of a cache."""


def fixed_probes(vocabulary_size: int, context_length: int) -> list[list[int]]:
    """Pseudo-random token ids, the same for the same arguments, each probe shorter than the context."""
    lengths = sorted({min(length, context_length - 1) for length in FIXED_LENGTHS})
    return [[_token(length, place, vocabulary_size) for place in range(length)] for length in lengths if length >= 2]


def batch_probes(sequences: Sequence[Sequence[int] | NDArray[np.int32]], count: int) -> list[list[int]]:
    """The `count` shortest sequences that can be scored: enough to tell one set of weights from another."""
    shortest = sorted((each for each in sequences if len(each) >= 2), key=len)[:count]
    return [[int(token) for token in each] for each in shortest]


def _token(length: int, place: int, vocabulary_size: int) -> int:
    digest = hashlib.sha256(f"troupe probe {length} {place}".encode()).digest()
    return int.from_bytes(digest[:8], "little") % vocabulary_size
