"""A stand-in for the learner: keeps its contract, has no weights, and remembers what it was given."""

from collections.abc import AsyncIterator

from troupe.v1 import common_pb2, learner_pb2, learner_pb2_grpc, policy_pb2
from troupe_contracts.batch import digest
from troupe_contracts.calls import Context
from troupe_contracts.errors import Aborted, FailedPrecondition, InvalidArgument

from orchestrated.models import POLICY_ID


class StandInLearner(learner_pb2_grpc.LearnerServicer):
    """Applies each batch once and raises its version by one."""

    def __init__(self) -> None:
        self.run_id = ""
        self.bases: list[tuple[str, str]] = []
        self._lineage = "start"
        self.tokenizer_digest = "t" * 64
        self.batches: dict[bytes, list[learner_pb2.Sequence]] = {}
        self.applied: list[learner_pb2.AppliedStep] = []
        self.checkpoints: list[str] = []
        self._done: dict[str, learner_pb2.Operation] = {}

    @property
    def version(self) -> common_pb2.PolicyVersion:
        return common_pb2.PolicyVersion(lineage=self._lineage, number=len(self.applied))

    async def GetLearner(self, request: learner_pb2.GetLearnerRequest, context: Context) -> learner_pb2.LearnerInfo:
        return learner_pb2.LearnerInfo(
            policy_id=POLICY_ID,
            version=self.version,
            state=learner_pb2.GANG_STATE_READY,
            run_id=self.run_id,
            applied_step=len(self.applied),
            applied_digest=self.applied[-1].digest if self.applied else b"",
            model="no model",
            tokenizer_digest=self.tokenizer_digest,
            architecture_digest="a" * 64,
            applied_steps=self.applied,
        )

    async def SubmitBatch(
        self, requests: AsyncIterator[learner_pb2.SubmitBatchRequest], context: Context
    ) -> learner_pb2.SubmitBatchResponse:
        header, sequences = learner_pb2.BatchHeader(), []
        async for request in requests:
            if request.HasField("header"):
                header = request.header
            sequences += request.chunk.sequences
        if digest(sequences) != header.digest or len(sequences) != header.sequence_count:
            raise InvalidArgument("digest", "is not that of the sequences")
        if self.run_id not in ("", header.run_id):
            raise FailedPrecondition(self.run_id, "holds this learner: BindRun first")
        self.run_id = header.run_id
        self.batches[header.digest] = sequences
        return learner_pb2.SubmitBatchResponse(sequence_count=len(sequences))

    async def TrainStep(self, request: learner_pb2.TrainStepRequest, context: Context) -> learner_pb2.Operation:
        done = len(self.applied)
        if request.step == done and self.applied[-1].digest != request.digest:
            raise Aborted(f"step {done} was applied with another digest")
        if request.step not in (done, done + 1):
            raise FailedPrecondition("step", f"replay from {done + 1}")
        assert request.digest in self.batches
        if request.step == done + 1:
            self.applied.append(learner_pb2.AppliedStep(step=request.step, digest=request.digest))
        result = learner_pb2.TrainStepResult(
            step=request.step, digest=request.digest, version=self.version, metrics={"loss": 0.0}
        )
        return self._operation(learner_pb2.Operation(done=True, train_step=result))

    async def WatchOperation(
        self, request: learner_pb2.WatchOperationRequest, context: Context
    ) -> AsyncIterator[learner_pb2.OperationEvent]:
        yield learner_pb2.OperationEvent(event_id=1, progress=1.0, operation=self._done[request.name])

    async def Score(self, request: learner_pb2.ScoreRequest, context: Context) -> learner_pb2.ScoreResponse:
        scores = [
            learner_pb2.SequenceScore(log_probs=[-0.5] * (len(sequence.token_ids) - 1))
            for sequence in request.sequences
        ]
        return learner_pb2.ScoreResponse(version=self.version, scores=scores)

    async def ExportWeights(
        self, request: learner_pb2.ExportWeightsRequest, context: Context
    ) -> AsyncIterator[learner_pb2.ExportWeightsResponse]:
        yield learner_pb2.ExportWeightsResponse(
            manifest=policy_pb2.WeightManifest(policy_id=POLICY_ID, version=self.version)
        )

    async def BindRun(self, request: learner_pb2.BindRunRequest, context: Context) -> learner_pb2.Operation:
        if self.run_id == request.run_id and self.applied:
            raise FailedPrecondition(self.run_id, "has applied steps")
        if self.applied:
            self._lineage = f"of-{request.run_id}"
        self.run_id = request.run_id
        self.bases.append((request.run_id, request.uri))
        self.applied.clear()
        bound = learner_pb2.CheckpointInfo(uri=request.uri, version=self.version)
        return self._operation(learner_pb2.Operation(done=True, checkpoint=bound))

    async def SaveCheckpoint(
        self, request: learner_pb2.SaveCheckpointRequest, context: Context
    ) -> learner_pb2.Operation:
        self.checkpoints.append(request.uri)
        saved = learner_pb2.CheckpointInfo(uri=request.uri, version=self.version, step=len(self.applied))
        return self._operation(learner_pb2.Operation(done=True, checkpoint=saved))

    def _operation(self, done: learner_pb2.Operation) -> learner_pb2.Operation:
        """Remembers what the operation ends as; it is begun and not done for whoever started it."""
        done.name = f"operation-{len(self._done)}"
        self._done[done.name] = done
        return learner_pb2.Operation(name=done.name)
