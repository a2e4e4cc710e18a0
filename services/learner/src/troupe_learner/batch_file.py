"""A batch of sequences as one file in the work folder: how it passes from the front to the ranks.

NumPy's .npz without pickling. Per-token values of all sequences lie end to end; `lengths` cuts them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class BatchArrays:
    """Sequences of one step. Arrays other than `ids` and `lengths` have one value per token."""

    ids: tuple[str, ...]
    lengths: NDArray[np.int64]
    token_ids: NDArray[np.int64]
    weights: NDArray[np.float32]
    advantages: NDArray[np.float32]
    behaviour_log_probs: NDArray[np.float32]

    def offsets(self) -> NDArray[np.int64]:
        """Where each sequence begins in the per-token arrays, and one past the end."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.lengths)])


def write_batch(path: Path, batch: BatchArrays) -> None:
    """Writes the file whole or not at all."""
    _write(
        path,
        ids=np.array(batch.ids, dtype=np.str_),
        lengths=batch.lengths,
        token_ids=batch.token_ids,
        weights=batch.weights,
        advantages=batch.advantages,
        behaviour_log_probs=batch.behaviour_log_probs,
    )


def read_batch(path: Path) -> BatchArrays:
    with np.load(path, allow_pickle=False) as stored:
        return BatchArrays(
            ids=tuple(str(each) for each in stored["ids"]),
            lengths=stored["lengths"],
            token_ids=stored["token_ids"],
            weights=stored["weights"],
            advantages=stored["advantages"],
            behaviour_log_probs=stored["behaviour_log_probs"],
        )


def write_sequences(path: Path, sequences: Sequence[Sequence[int]]) -> None:
    """Token ids only, for scoring."""
    lengths = np.array([len(each) for each in sequences], dtype=np.int64)
    flat = np.fromiter((token for each in sequences for token in each), dtype=np.int64)
    _write(path, lengths=lengths, token_ids=flat)


def read_sequences(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lengths, and token ids end to end."""
    with np.load(path, allow_pickle=False) as stored:
        return stored["lengths"], stored["token_ids"]


def write_scores(path: Path, log_probs: NDArray[np.float32], entropies: NDArray[np.float32]) -> None:
    """One value per token but the first of each sequence, end to end."""
    _write(path, log_probs=log_probs, entropies=entropies)


def read_scores(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    with np.load(path, allow_pickle=False) as stored:
        return stored["log_probs"], stored["entropies"]


def _write(path: Path, **arrays: NDArray[np.generic]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
