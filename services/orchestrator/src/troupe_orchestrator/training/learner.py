"""The orchestrator's side of one learner: submit a batch, have it applied once, read scores and manifests.

Every call can be repeated: a batch is known by its digest, a step by its number and digest, an operation by its name. A
lost connection is survived by asking again; what the learner itself says is final.

No work has a limit of time: a call that carries or computes something may take longer the more it is, and an operation as
long as it tells of progress. One that tells of none for `stall_seconds` is a fault that names it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
import numpy as np
import structlog
from google.protobuf.json_format import ParseDict
from numpy.typing import NDArray
from troupe.v1 import common_pb2, learner_pb2, learner_pb2_grpc, policy_pb2
from troupe_contracts.channel import connect
from troupe_contracts.errors import code_of, describe, retry_delay
from troupe_contracts.identity import own

from troupe_orchestrator.training.batch import TrainingSequence

logger = structlog.get_logger()

STALL_SECONDS: Final = 1800.0
_CHUNK_TOKENS = 65_536
_CALL_SECONDS = 60.0
"""For a call, beside what it carries or computes."""
_SLOWEST_SUBMITTED = 20_000
"""Tokens per second, sent, checked, hashed and written. Measured on one busy core: 360,000."""
_SLOWEST_SCORED = 20
"""Tokens per second of a forward pass."""
_RECONNECT_SECONDS = 1.0
_LOST_SECONDS = 300.0
"""How long an operation's learner may be away."""
_LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)


class LearnerError(RuntimeError):
    """The learner could not do what a step needs."""


class ContradictionError(LearnerError):
    """What a learner has applied is not what the store has sealed."""


class OtherWeightsError(LearnerError):
    """The learner's initial weights are not those that a run began with."""


class BaseGoneError(LearnerError):
    """The weights that a fork began with are nowhere any more."""


class CheckpointUnreadableError(LearnerError):
    """A checkpoint is not there, or damaged."""


class LearnerDiskFullError(LearnerError):
    """There is no room on the learner's disk: for a batch, a checkpoint, its work folder, or to start its ranks."""


class OperationStalledError(LearnerError):
    """An operation of the learner tells of no progress."""


class NonFiniteStepError(LearnerError):
    """A gradient was not finite. The learner undid the step; the same batch would end so again."""


_OPERATION_ERRORS: Final[dict[int, type[LearnerError]]] = {
    grpc.StatusCode.OUT_OF_RANGE.value[0]: NonFiniteStepError,
    grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]: LearnerDiskFullError,
    grpc.StatusCode.NOT_FOUND.value[0]: CheckpointUnreadableError,
    grpc.StatusCode.DATA_LOSS.value[0]: CheckpointUnreadableError,
}
"""What an operation's code says; a learner runs out of nothing but disk in one, and loads nothing but checkpoints."""


@dataclass(frozen=True, slots=True)
class LearnerClient:
    """One policy's learner."""

    target: str
    policy_id: str
    stub: learner_pb2_grpc.LearnerAsyncStub
    stall_seconds: float = STALL_SECONDS

    @classmethod
    async def connect(cls, target: str, stall_seconds: float) -> LearnerClient:
        """Connect and ask whose learner it is."""
        stub = learner_pb2_grpc.LearnerStub(connect(target, own()))
        state = await stub.GetLearner(learner_pb2.GetLearnerRequest())
        return cls(target, state.policy_id, stub, stall_seconds)

    async def get(self, applied_after: int = 0) -> learner_pb2.LearnerInfo:
        """The learner's state, with the steps that it has applied after a given one."""
        return await self.stub.GetLearner(
            learner_pb2.GetLearnerRequest(policy_id=self.policy_id, applied_after=applied_after)
        )

    async def train(
        self,
        fence: common_pb2.Fence,
        run_id: str,
        update: int,
        digest: bytes,
        sequences: Sequence[TrainingSequence],
        optimization: dict[str, Any],
    ) -> learner_pb2.TrainStepResult:
        """Have a batch applied, once, however often this is called.

        Raises:
            LearnerDiskFullError: the learner has no room for it.
            LearnerError: the learner refused or failed, with its words.
        """
        header = learner_pb2.BatchHeader(
            fence=fence,
            run_id=run_id,
            policy_id=self.policy_id,
            step=update,
            digest=digest,
            sequence_count=len(sequences),
        )
        request = learner_pb2.TrainStepRequest(
            fence=fence,
            run_id=run_id,
            policy_id=self.policy_id,
            step=update,
            digest=digest,
            optimization=ParseDict(optimization, learner_pb2.Optimization()),
        )
        tokens = sum(len(each.token_ids) for each in sequences)
        with _named(f"update {update} of policy {self.policy_id}"):
            await self.stub.SubmitBatch(
                _batch_messages(header, sequences), timeout=_CALL_SECONDS + tokens / _SLOWEST_SUBMITTED
            )
            operation = await self.stub.TrainStep(request)
            return (await self._finished(operation)).train_step

    async def checkpoint(
        self, fence: common_pb2.Fence, uri: str, run_id: str, update: int
    ) -> learner_pb2.CheckpointInfo:
        """Write the weights of a run after an update to a new folder.

        Raises:
            LearnerDiskFullError: there is no room for it.
            LearnerError: it could not be written, or the learner has other weights.
        """
        with _named(f"checkpoint {uri} of policy {self.policy_id}"):
            operation = await self.stub.SaveCheckpoint(
                learner_pb2.SaveCheckpointRequest(
                    fence=fence, policy_id=self.policy_id, uri=uri, run_id=run_id, step=update
                )
            )
            return (await self._finished(operation)).checkpoint

    async def restore(self, fence: common_pb2.Fence, uri: str) -> learner_pb2.CheckpointInfo:
        """Load a checkpoint.

        Raises:
            CheckpointUnreadableError: it is not there, or damaged; what was loaded before still is.
            LearnerError: it could not be loaded; the same holds.
        """
        with _named(f"restore of {uri} for policy {self.policy_id}"):
            operation = await self.stub.RestoreCheckpoint(
                learner_pb2.RestoreCheckpointRequest(fence=fence, policy_id=self.policy_id, uri=uri)
            )
            return (await self._finished(operation)).checkpoint

    async def bind(self, fence: common_pb2.Fence, run_id: str, uri: str) -> learner_pb2.CheckpointInfo:
        """Take the learner for a run that begins, at the weights of a checkpoint, or at the initial ones for "".

        Raises:
            CheckpointUnreadableError: the checkpoint is not there, or damaged; what was loaded before still is.
            LearnerError: it could not be taken; the same holds.
        """
        with _named(f"binding policy {self.policy_id} to run {run_id}"):
            operation = await self.stub.BindRun(
                learner_pb2.BindRunRequest(fence=fence, policy_id=self.policy_id, run_id=run_id, uri=uri)
            )
            return (await self._finished(operation)).checkpoint

    async def manifest(self) -> policy_pb2.WeightManifest:
        """What the current weights are, without their bytes.

        Raises:
            LearnerDiskFullError: the learner has no room to write them down.
            LearnerError: it did not answer, or with nothing.
        """
        request = learner_pb2.ExportWeightsRequest(policy_id=self.policy_id, manifest_only=True)
        with _named(f"the weights of policy {self.policy_id}"):
            async for response in self.stub.ExportWeights(request, timeout=self.stall_seconds):
                if response.WhichOneof("message") == "manifest":
                    return response.manifest
        raise LearnerError(f"the learner of policy {self.policy_id} exported no manifest")

    async def log_probs(
        self, sequences: Sequence[Sequence[int]], version: common_pb2.PolicyVersion
    ) -> list[NDArray[np.float32]]:
        """The log-probability of every token but the first of given token sequences, under the weights of a version.

        Raises:
            LearnerDiskFullError: the learner has no room for them.
            LearnerError: it could not score them, or has other weights.
        """
        with _named(f"scores of policy {self.policy_id}"):
            scored = await self.stub.Score(
                learner_pb2.ScoreRequest(
                    policy_id=self.policy_id,
                    sequences=[learner_pb2.ScoreSequence(token_ids=ids) for ids in sequences],
                ),
                timeout=_CALL_SECONDS + sum(map(len, sequences)) / _SLOWEST_SCORED,
            )
        if scored.version != version:
            raise LearnerError(
                f"the learner of policy {self.policy_id} has version {scored.version.lineage}/{scored.version.number}, "
                f"{version.lineage}/{version.number} was to be scored"
            )
        return [np.asarray(score.log_probs, dtype=np.float32) for score in scored.scores]

    async def probes(
        self, sequences: Sequence[Sequence[int]], version: common_pb2.PolicyVersion
    ) -> list[policy_pb2.Probe]:
        """Token sequences with a version's log-probabilities by the learner, for an engine to reproduce."""
        return [
            policy_pb2.Probe(token_ids=ids, log_probs=log_probs.tolist())
            for ids, log_probs in zip(sequences, await self.log_probs(sequences, version), strict=True)
        ]

    async def settled(self, name: str) -> None:
        """Wait until an operation that somebody started has ended, well or not.

        Raises:
            OperationStalledError: it tells of no progress.
            grpc.RpcError: the learner has no such operation, or is away for long.
        """
        await self._ended(learner_pb2.Operation(name=name))

    async def _finished(self, operation: learner_pb2.Operation) -> learner_pb2.Operation:
        """Wait for an operation's good end.

        Raises:
            LearnerError: it failed, or stalled.
        """
        operation = await self._ended(operation)
        if operation.HasField("error"):
            kind = _OPERATION_ERRORS.get(operation.error.code, LearnerError)
            raise kind(f"policy {self.policy_id}: {operation.error.message}")
        return operation

    async def _ended(self, operation: learner_pb2.Operation) -> learner_pb2.Operation:
        """Wait for an operation's end, over lost connections."""
        after = 0
        give_up = time.monotonic() + _LOST_SECONDS
        while not operation.done:
            events = self.stub.WatchOperation(
                learner_pb2.WatchOperationRequest(name=operation.name, after_event_id=after)
            )
            try:
                async with asyncio.timeout(self.stall_seconds) as limit:
                    async for event in events:
                        after, operation = event.event_id, event.operation
                        give_up = time.monotonic() + _LOST_SECONDS
                        limit.reschedule(asyncio.get_running_loop().time() + self.stall_seconds)
            except TimeoutError as error:
                raise OperationStalledError(
                    f"{operation.name} of the learner at {self.target} told of no progress for "
                    f"{self.stall_seconds:g} s (TROUPE_STALL_SECONDS)"
                ) from error
            except grpc.RpcError as error:
                if error.code() not in _LOST or time.monotonic() > give_up:
                    raise
                logger.warning("lost the learner's operation, asking again", error=describe(error))
                await asyncio.sleep(_RECONNECT_SECONDS)
        return operation


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    """Calls to the learner for something that an error is to name."""
    try:
        yield
    except grpc.RpcError as error:
        # Without a delay it is gRPC's own code for a message that is too large.
        full = code_of(error) is grpc.StatusCode.RESOURCE_EXHAUSTED and retry_delay(error) is not None
        raise (LearnerDiskFullError if full else LearnerError)(f"{what}: {describe(error)}") from error


async def _batch_messages(
    header: learner_pb2.BatchHeader, sequences: Sequence[TrainingSequence]
) -> AsyncIterator[learner_pb2.SubmitBatchRequest]:
    yield learner_pb2.SubmitBatchRequest(header=header)
    chunk = learner_pb2.SequenceChunk()
    tokens = 0
    for sequence in sequences:
        chunk.sequences.append(sequence.to_message())
        tokens += len(sequence.token_ids)
        if tokens >= _CHUNK_TOKENS:
            yield learner_pb2.SubmitBatchRequest(chunk=chunk)
            chunk, tokens = learner_pb2.SequenceChunk(), 0
    if chunk.sequences:
        yield learner_pb2.SubmitBatchRequest(chunk=chunk)
