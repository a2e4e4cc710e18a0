"""A stand-in for the learner: keeps its contract, and remembers what it was given. Its weights are the digests of the
batches that made them.

What may be applied when is decided by the real learner's own ledger.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator

import grpc
from troupe.v1 import common_pb2, learner_pb2, learner_pb2_grpc, policy_pb2
from troupe_contracts.batch import digest
from troupe_contracts.calls import Context
from troupe_contracts.errors import Exhausted, FailedPrecondition, InvalidArgument
from troupe_contracts.fence import FenceGuard
from troupe_learner.ledger import AppliedStep, Ledger, Version

from orchestrated.models import POLICY_ID

_NOT_FOUND: int = grpc.StatusCode.NOT_FOUND.value[0]
_OUT_OF_RANGE: int = grpc.StatusCode.OUT_OF_RANGE.value[0]
_RESOURCE_EXHAUSTED: int = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
NO_ROOM = "/work/learner cannot be written (No space left on device): make room there, then call again"


class StandInLearner(learner_pb2_grpc.LearnerServicer):
    """Applies each batch once and raises its version by one."""

    def __init__(self, policy_id: str = POLICY_ID) -> None:
        self.policy_id = policy_id
        self.ledger = Ledger("", "start")
        self.bases: list[tuple[str, str]] = []
        """(run, uri) of every BindRun that changed something."""
        self.tokenizer_digest = "t" * 64
        self.weights_digest = "w" * 64
        self.generation = 1
        self.detail = ""
        self.gradients_are_finite = True
        self.full_for = ""
        """Name of the call for which its disk has no room."""
        self.told: list[int] = []
        """How many applied steps each answer to GetLearner held."""
        self.optimizations: list[learner_pb2.Optimization] = []
        """Of every TrainStep, replays too."""
        self.batches: dict[bytes, list[learner_pb2.Sequence]] = {}
        self.checkpoints: dict[str, Ledger] = {}
        self.weights: tuple[bytes, ...] = ()
        """Digests of all batches that made them, of whatever run."""
        self.saved_weights: dict[str, tuple[bytes, ...]] = {}
        """Of each checkpoint."""
        self._initial = self.ledger.version
        self._lineages = (f"start~{number}" for number in itertools.count(1))
        self._fences = FenceGuard()
        self._done: dict[str, learner_pb2.Operation] = {}

    @property
    def run_id(self) -> str:
        return self.ledger.run_id

    @property
    def applied(self) -> list[AppliedStep]:
        return list(self.ledger.steps)

    @property
    def version(self) -> common_pb2.PolicyVersion:
        return _version(self.ledger.version)

    async def GetLearner(self, request: learner_pb2.GetLearnerRequest, context: Context) -> learner_pb2.LearnerInfo:
        steps = [
            learner_pb2.AppliedStep(step=each.step, digest=each.digest)
            for each in self.ledger.steps[request.applied_after :]
        ]
        self.told.append(len(steps))
        return learner_pb2.LearnerInfo(
            policy_id=self.policy_id,
            version=self.version,
            state=learner_pb2.GANG_STATE_READY,
            run_id=self.run_id,
            applied_step=self.ledger.applied_step,
            applied_digest=self.ledger.applied_digest,
            model="no model",
            tokenizer_digest=self.tokenizer_digest,
            architecture_digest="a" * 64,
            weights_digest=self.weights_digest,
            applied_steps=steps,
            generation=self.generation,
            detail=self.detail,
        )

    async def SubmitBatch(
        self, requests: AsyncIterator[learner_pb2.SubmitBatchRequest], context: Context
    ) -> learner_pb2.SubmitBatchResponse:
        header, sequences = learner_pb2.BatchHeader(), []
        self._check_room("SubmitBatch")
        async for request in requests:
            if request.HasField("header"):
                header = request.header
            sequences += request.chunk.sequences
        self._fences.check(header.fence)
        if digest(sequences) != header.digest or len(sequences) != header.sequence_count:
            raise InvalidArgument("digest", "is not that of the sequences")
        self.ledger.check_run(header.run_id)
        self.batches[header.digest] = sequences
        return learner_pb2.SubmitBatchResponse(sequence_count=len(sequences))

    async def TrainStep(self, request: learner_pb2.TrainStepRequest, context: Context) -> learner_pb2.Operation:
        self._fences.check(request.fence)
        self.ledger.check_run(request.run_id)
        self.optimizations.append(request.optimization)
        if self.full_for == "TrainStep":
            return self._no_room()
        if not self.gradients_are_finite:
            undone = learner_pb2.OperationError(code=_OUT_OF_RANGE, message="the gradient's norm is nan")
            return self._operation(learner_pb2.Operation(done=True, error=undone))
        applied = self.ledger.stored_result(request.step, request.digest)
        if applied is None:
            if request.digest not in self.batches:
                raise FailedPrecondition(f"batch {request.digest.hex()}", "is not here: call SubmitBatch with it")
            self.ledger = self.ledger.with_step(request.digest, {"loss": 0.0})
            self.weights = (*self.weights, request.digest)
            applied = self.ledger.steps[-1]
        result = learner_pb2.TrainStepResult(
            step=applied.step, digest=applied.digest, version=_version(applied.version), metrics=applied.metrics
        )
        return self._operation(learner_pb2.Operation(done=True, train_step=result))

    async def WatchOperation(
        self, request: learner_pb2.WatchOperationRequest, context: Context
    ) -> AsyncIterator[learner_pb2.OperationEvent]:
        yield learner_pb2.OperationEvent(event_id=1, progress=1.0, operation=self._done[request.name])

    async def Score(self, request: learner_pb2.ScoreRequest, context: Context) -> learner_pb2.ScoreResponse:
        self._check_room("Score")
        if not request.sequences:
            raise InvalidArgument("sequences", "is empty: send at least one")
        scores = [
            learner_pb2.SequenceScore(log_probs=[-0.5] * (len(sequence.token_ids) - 1))
            for sequence in request.sequences
        ]
        return learner_pb2.ScoreResponse(version=self.version, scores=scores)

    async def ExportWeights(
        self, request: learner_pb2.ExportWeightsRequest, context: Context
    ) -> AsyncIterator[learner_pb2.ExportWeightsResponse]:
        self._check_room("ExportWeights")
        yield learner_pb2.ExportWeightsResponse(
            manifest=policy_pb2.WeightManifest(policy_id=self.policy_id, version=self.version)
        )

    async def SaveCheckpoint(
        self, request: learner_pb2.SaveCheckpointRequest, context: Context
    ) -> learner_pb2.Operation:
        self._fences.check(request.fence)
        if self.full_for == "SaveCheckpoint":
            return self._no_room()
        self.ledger.check_step(request.run_id, request.step)
        if self.checkpoints.setdefault(request.uri, self.ledger) != self.ledger:
            raise FailedPrecondition(request.uri, "exists and holds another state: choose another place")
        self.saved_weights[request.uri] = self.weights
        return self._loaded(request.uri)

    async def RestoreCheckpoint(
        self, request: learner_pb2.RestoreCheckpointRequest, context: Context
    ) -> learner_pb2.Operation:
        self._fences.check(request.fence)
        if request.uri not in self.checkpoints:
            return self._no_checkpoint(request.uri)
        saved = self.checkpoints[request.uri]
        if saved.version != self.ledger.version:
            saved = saved.in_lineage(next(self._lineages))
        self.ledger, self.weights = saved, self.saved_weights[request.uri]
        return self._loaded(request.uri)

    async def BindRun(self, request: learner_pb2.BindRunRequest, context: Context) -> learner_pb2.Operation:
        self._fences.check(request.fence)
        if self.run_id == request.run_id:
            if self.applied:
                raise FailedPrecondition(f"run {self.run_id}", f"has {len(self.applied)} applied steps here")
            if self.bases[-1:] == [(request.run_id, request.uri)]:
                return self._loaded(request.uri)
        if request.uri and request.uri not in self.checkpoints:
            return self._no_checkpoint(request.uri)
        if request.uri:
            lineage = next(self._lineages)
        else:
            # The initial weights keep their name until a run has trained on them under it.
            untouched = self.ledger.version == self._initial
            lineage = self._initial.lineage if untouched else next(self._lineages)
            self._initial = Version(lineage, 0)
        self.ledger = Ledger(request.run_id, lineage)
        self.weights = self.saved_weights[request.uri] if request.uri else ()
        self.bases.append((request.run_id, request.uri))
        return self._loaded(request.uri)

    def lose(self) -> None:
        """It is started again: what is not in a checkpoint is gone."""
        self.ledger, self.weights = Ledger("", next(self._lineages)), ()
        self._initial = self.ledger.version
        self.batches.clear()
        self.bases.clear()
        self._done.clear()
        self.generation += 1

    def _check_room(self, call: str) -> None:
        """A call that answers at once is refused, with a delay."""
        if self.full_for == call:
            raise Exhausted(NO_ROOM, 10.0)

    def _no_room(self) -> learner_pb2.Operation:
        """An operation that ends for want of room."""
        error = learner_pb2.OperationError(code=_RESOURCE_EXHAUSTED, message=NO_ROOM)
        return self._operation(learner_pb2.Operation(done=True, error=error))

    def _no_checkpoint(self, uri: str) -> learner_pb2.Operation:
        """An operation that ends for want of a checkpoint."""
        error = learner_pb2.OperationError(code=_NOT_FOUND, message=f"there is no checkpoint {uri!r}")
        return self._operation(learner_pb2.Operation(done=True, error=error))

    def _loaded(self, uri: str) -> learner_pb2.Operation:
        """The operation that ends with what is loaded now."""
        loaded = learner_pb2.CheckpointInfo(
            uri=uri, version=self.version, step=self.ledger.applied_step, digest=self.ledger.applied_digest
        )
        return self._operation(learner_pb2.Operation(done=True, checkpoint=loaded))

    def _operation(self, done: learner_pb2.Operation) -> learner_pb2.Operation:
        """Remembers what the operation ends as; it is begun and not done for whoever started it."""
        done.name = f"operation-{len(self._done)}"
        self._done[done.name] = done
        return learner_pb2.Operation(name=done.name)


def _version(version: Version) -> common_pb2.PolicyVersion:
    return common_pb2.PolicyVersion(lineage=version.lineage, number=version.number)
