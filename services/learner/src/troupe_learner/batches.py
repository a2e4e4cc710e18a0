"""Batches that have been submitted and not yet outlived: checked, hashed, written to the work folder.

A batch is known by its digest. Those of steps before the last applied one are removed; who needs one again submits it
again from the store that holds the sealed batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from troupe.v1 import learner_pb2
from troupe_contracts import batch as contract
from troupe_contracts.errors import FailedPrecondition, InvalidArgument

from troupe_learner.batch_file import BatchArrays, write_batch
from troupe_learner.disk import writing
from troupe_learner.model_folder import ModelFolder

MAX_BATCH_TOKENS: Final = 1 << 27


@dataclass(frozen=True)
class Submitted:
    """Sizes of a batch that was accepted."""

    sequence_count: int
    token_count: int


class BatchStore:
    """Files of one folder, which nobody else writes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._steps: dict[bytes, int] = {}

    def add(self, step: int, digest: bytes, sequences: Sequence[learner_pb2.Sequence], model: ModelFolder) -> Submitted:
        """Checks the sequences against their digest and the model, and keeps them. Slow: call it off the event loop.

        Raises:
            InvalidArgument: names the sequence and the field that is wrong.
            Exhausted, FailedPrecondition: the batch cannot be written.
        """
        for index, sequence in enumerate(sequences):
            contract.validate(sequence, f"sequences[{index}]")
            _fits(sequence, f"sequences[{index}]", model)
        computed = contract.digest(sequences)
        if computed != digest:
            raise InvalidArgument(
                "header.digest",
                f"is {digest.hex()}, but the sequences hash to {computed.hex()} "
                "(troupe_contracts.batch.digest): send the batch that was sealed",
            )
        if not any(any(sequence.weights) for sequence in sequences):
            raise InvalidArgument(
                "sequences", "have no token with a weight: there is nothing to train on in this batch"
            )
        arrays = as_arrays(sequences)
        with writing(self._path(digest)):
            write_batch(self._path(digest), arrays)
        self._steps[digest] = step
        return Submitted(len(sequences), len(arrays.token_ids))

    def path(self, step: int, digest: bytes) -> Path:
        """The file of a batch.

        Raises:
            FailedPrecondition: it has not been submitted for this step, or is gone.
        """
        if self._steps.get(digest) != step:
            raise FailedPrecondition(
                f"batch {digest.hex()}",
                f"of step {step} is not here: call SubmitBatch with it, then TrainStep again",
            )
        return self._path(digest)

    def forget_before(self, step: int) -> None:
        """Removes batches of steps below `step`."""
        for digest in [each for each, at in self._steps.items() if at < step]:
            del self._steps[digest]
            self._path(digest).unlink(missing_ok=True)

    def forget_all(self) -> None:
        """Removes every batch: they were another run's."""
        for digest in list(self._steps):
            del self._steps[digest]
            self._path(digest).unlink(missing_ok=True)

    def _path(self, digest: bytes) -> Path:
        return self._folder / f"{digest.hex()}.npz"


def as_arrays(sequences: Sequence[learner_pb2.Sequence]) -> BatchArrays:
    def floats(name: str) -> NDArray[np.float32]:
        return np.concatenate([np.fromiter(getattr(each, name), dtype=np.float32) for each in sequences])

    return BatchArrays(
        ids=tuple(each.id for each in sequences),
        lengths=np.array([len(each.token_ids) for each in sequences], dtype=np.int64),
        token_ids=np.concatenate([np.fromiter(each.token_ids, dtype=np.int64) for each in sequences]),
        weights=floats("weights"),
        advantages=floats("advantages"),
        behaviour_log_probs=floats("behaviour_log_probs"),
    )


def check_tokens(field: str, token_ids: Sequence[int], model: ModelFolder) -> None:
    """Whether the model can read the tokens.

    Raises:
        InvalidArgument: none, too many, or an id that is not in the vocabulary.
    """
    if not token_ids:
        raise InvalidArgument(f"{field}.token_ids", "is empty: leave such a sequence out")
    if len(token_ids) > model.context_length:
        raise InvalidArgument(
            f"{field}.token_ids",
            f"has {len(token_ids)} tokens, the model's context is {model.context_length}: leave the sequence out",
        )
    if (largest := max(token_ids)) >= model.vocabulary_size:
        raise InvalidArgument(
            f"{field}.token_ids",
            f"holds {largest}, the model's vocabulary has {model.vocabulary_size} tokens: "
            "was it made with another tokenizer?",
        )


def _fits(sequence: learner_pb2.Sequence, field: str, model: ModelFolder) -> None:
    check_tokens(f"{field} ({sequence.id})", sequence.token_ids, model)
