"""What is read of the weights: an export kept on disk, and scores. Files of the work folder, whole or not at all.

Whoever calls holds the weights still meanwhile, says which version they are, and has the ranks that hold them.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from troupe_learner.batch_file import read_scores, write_sequences
from troupe_learner.channel import Message
from troupe_learner.disk import writing
from troupe_learner.exports import Export, describe
from troupe_learner.ledger import Version
from troupe_learner.work_folder import WorkFolder


@dataclass(frozen=True)
class Scores:
    """Log-probabilities and entropies of all tokens but the first of each sequence, end to end."""

    version: Version
    log_probs: NDArray[np.float32]
    entropies: NDArray[np.float32]


Run = Callable[[Message], Awaitable[None]]
"""Carries out a command on ranks."""


class Reads:
    """The reads of one learner."""

    def __init__(self, folder: WorkFolder) -> None:
        self._folder = folder
        self._export: Export | None = None
        self._numbers = itertools.count(1)

    async def export(self, version: Version, run: Run) -> Export:
        """The weights as a file with its manifest; one that is there already is given again."""
        if self._export is None or self._export.version != version:
            await self.forget_export()
            self._export = await self._exported(version, run)
        return self._export

    async def forget_export(self) -> None:
        if self._export is not None:
            await asyncio.to_thread(self._export.path.unlink, missing_ok=True)
            self._export = None

    async def score(self, version: Version, sequences: Sequence[Sequence[int]], run: Run) -> Scores:
        number = next(self._numbers)
        tokens = self._folder.scores / f"{number}-tokens.npz"
        scores = self._folder.scores / f"{number}-scores.npz"
        try:
            with writing(tokens):
                await asyncio.to_thread(write_sequences, tokens, sequences)
            await run({"command": "score", "sequences": str(tokens), "scores": str(scores)})
            return Scores(version, *await asyncio.to_thread(read_scores, scores))
        finally:
            tokens.unlink(missing_ok=True)
            scores.unlink(missing_ok=True)

    async def _exported(self, version: Version, run: Run) -> Export:
        path = self._folder.exports / f"{next(self._numbers)}.safetensors"
        try:
            await run({"command": "export", "weights": str(path)})
            return await asyncio.to_thread(describe, version, path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
