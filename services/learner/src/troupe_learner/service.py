"""The gRPC face of the learner: requests to plain values, plain values to responses, fences and policy ids checked."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
from troupe.v1 import common_pb2, learner_pb2, learner_pb2_grpc, policy_pb2
from troupe_contracts.errors import InvalidArgument, NotFound

from troupe_learner.batches import MAX_BATCH_TOKENS, check_tokens
from troupe_learner.exports import Export, stream
from troupe_learner.fences import Fences
from troupe_learner.front import Front, State
from troupe_learner.ledger import AppliedStep, Version
from troupe_learner.operations import Event, Operation
from troupe_learner.optimization import Optimization

SERVICE_NAME: Final = "troupe.v1.Learner"
_DIGEST_BYTES: Final = 32

_STATES: Final = {
    State.STARTING: learner_pb2.GANG_STATE_STARTING,
    State.READY: learner_pb2.GANG_STATE_READY,
    State.TRAINING: learner_pb2.GANG_STATE_TRAINING,
    State.RESTARTING: learner_pb2.GANG_STATE_RESTARTING,
    State.DISK_FULL: learner_pb2.GANG_STATE_DISK_FULL,
    State.FAILED: learner_pb2.GANG_STATE_FAILED,
}

Context = grpc.aio.ServicerContext[Any, Any]


class LearnerService(learner_pb2_grpc.LearnerServicer):
    """Serves one `Front`."""

    def __init__(self, front: Front, fences: Fences) -> None:
        self._front = front
        self._fences = fences

    async def SubmitBatch(
        self, request_iterator: AsyncIterator[learner_pb2.SubmitBatchRequest], context: Context
    ) -> learner_pb2.SubmitBatchResponse:
        header, sequences = await self._received(request_iterator)
        front = self._front
        front.check_run(header.run_id)
        accepted = await asyncio.to_thread(front.batches.add, header.step, header.digest, sequences, front.model)
        # Another may have taken the learner while the batch came.
        self._fences.hold(header.fence)
        front.check_run(header.run_id)
        return learner_pb2.SubmitBatchResponse(sequence_count=accepted.sequence_count, token_count=accepted.token_count)

    async def TrainStep(self, request: learner_pb2.TrainStepRequest, context: Context) -> learner_pb2.Operation:
        self._check_policy(request.policy_id)
        await self._fences.check(request.fence)
        _check_digest("digest", request.digest)
        wanted = request.optimization
        optimization = Optimization(
            learning_rate=wanted.learning_rate,
            mini_batches=wanted.mini_batches,
            clip_low=wanted.clip_low,
            clip_high=wanted.clip_high,
            max_grad_norm=wanted.max_grad_norm,
            importance_cap=wanted.importance_cap,
            reset_optimizer=wanted.reset_optimizer,
            scale_by_mini_batches=wanted.scale_by_mini_batches,
        )
        optimization.check()
        operation = self._front.train(request.run_id, request.step, request.digest, optimization)
        return _operation(operation, operation.now)

    async def WatchOperation(
        self, request: learner_pb2.WatchOperationRequest, context: Context
    ) -> AsyncIterator[learner_pb2.OperationEvent]:
        operation = self._front.operations.get(request.name)
        async for event in operation.follow(request.after_event_id):
            yield learner_pb2.OperationEvent(
                event_id=event.number, progress=event.progress, operation=_operation(operation, event)
            )

    async def Score(self, request: learner_pb2.ScoreRequest, context: Context) -> learner_pb2.ScoreResponse:
        self._check_policy(request.policy_id)
        if not request.sequences:
            raise InvalidArgument("sequences", "is empty: send at least one")
        for index, sequence in enumerate(request.sequences):
            check_tokens(f"sequences[{index}]", sequence.token_ids, self._front.model)
        scores = await self._front.score([list(each.token_ids) for each in request.sequences])
        response = learner_pb2.ScoreResponse(version=_version(scores.version))
        start = 0
        for sequence in request.sequences:
            end = start + len(sequence.token_ids) - 1
            response.scores.add(
                log_probs=scores.log_probs[start:end].tolist(),
                entropies=scores.entropies[start:end].tolist(),
            )
            start = end
        return response

    async def ExportWeights(
        self, request: learner_pb2.ExportWeightsRequest, context: Context
    ) -> AsyncIterator[learner_pb2.ExportWeightsResponse]:
        self._check_policy(request.policy_id)
        wanted = Version(request.version.lineage, request.version.number) if request.HasField("version") else None
        export = await self._front.export(wanted)
        yield learner_pb2.ExportWeightsResponse(manifest=self._manifest(export))
        if request.manifest_only:
            return
        async for name, offset, piece in stream(export):
            yield learner_pb2.ExportWeightsResponse(chunk=learner_pb2.TensorChunk(name=name, offset=offset, data=piece))

    async def SaveCheckpoint(
        self, request: learner_pb2.SaveCheckpointRequest, context: Context
    ) -> learner_pb2.Operation:
        self._check_policy(request.policy_id)
        await self._fences.check(request.fence)
        operation = self._front.save(request.uri, request.run_id, request.step)
        return _operation(operation, operation.now)

    async def RestoreCheckpoint(
        self, request: learner_pb2.RestoreCheckpointRequest, context: Context
    ) -> learner_pb2.Operation:
        self._check_policy(request.policy_id)
        await self._fences.check(request.fence)
        operation = self._front.restore(request.uri)
        return _operation(operation, operation.now)

    async def BindRun(self, request: learner_pb2.BindRunRequest, context: Context) -> learner_pb2.Operation:
        self._check_policy(request.policy_id)
        await self._fences.check(request.fence)
        operation = self._front.bind_run(request.run_id, request.uri)
        return _operation(operation, operation.now)

    async def GetLearner(self, request: learner_pb2.GetLearnerRequest, context: Context) -> learner_pb2.LearnerInfo:
        if request.policy_id:  # empty asks whose learner this is
            self._check_policy(request.policy_id)
        front = self._front
        ledger = front.ledger
        return learner_pb2.LearnerInfo(
            policy_id=front.policy_id,
            version=_version(ledger.version),
            state=_STATES[front.state],
            run_id=ledger.run_id,
            applied_step=ledger.applied_step,
            applied_digest=ledger.applied_digest,
            model=front.model.name,
            tokenizer_digest=front.model.tokenizer_digest,
            chat_template_digest=front.model.chat_template_digest,
            architecture_digest=front.model.architecture_digest,
            weights_digest=front.model.weights_digest,
            tied_embeddings=front.model.tied_embeddings,
            ranks=front.layout.ranks,
            engine=front.engine,
            detail=front.detail,
            operation=front.operation,
            generation=front.generation,
            applied_steps=[
                learner_pb2.AppliedStep(step=each.step, digest=each.digest)
                for each in ledger.steps[request.applied_after :]
            ],
        )

    async def _received(
        self, requests: AsyncIterator[learner_pb2.SubmitBatchRequest]
    ) -> tuple[learner_pb2.BatchHeader, list[learner_pb2.Sequence]]:
        """The header, checked before any sequence is kept, and as many sequences as it announces."""
        header: learner_pb2.BatchHeader | None = None
        sequences: list[learner_pb2.Sequence] = []
        tokens = 0
        async for request in requests:
            kind = request.WhichOneof("message")
            if header is None:
                if kind != "header":
                    raise InvalidArgument("header", f"must be the first message, {kind} came")
                header = request.header
                await self._check_header(header)
                continue
            if kind != "chunk":
                raise InvalidArgument("chunk", f"is what follows the header, {kind} came")
            sequences.extend(request.chunk.sequences)
            tokens += sum(len(each.token_ids) for each in request.chunk.sequences)
            if tokens > MAX_BATCH_TOKENS:
                raise InvalidArgument(
                    "chunk.sequences", f"hold more than {MAX_BATCH_TOKENS} tokens: send smaller batches"
                )
            if len(sequences) > header.sequence_count:
                break
        if header is None:
            raise InvalidArgument("header", "is missing: the stream was empty")
        if len(sequences) != header.sequence_count:
            raise InvalidArgument(
                "header.sequence_count", f"is {header.sequence_count}, {len(sequences)} or more sequences came"
            )
        return header, sequences

    async def _check_header(self, header: learner_pb2.BatchHeader) -> None:
        self._check_policy(header.policy_id)
        await self._fences.check(header.fence)
        self._front.check_run(header.run_id)
        _check_digest("header.digest", header.digest)
        if header.step == 0:
            raise InvalidArgument("header.step", "is 0: steps count from 1")
        if header.sequence_count == 0:
            raise InvalidArgument("header.sequence_count", "is 0: an empty batch trains nothing, leave it out")

    def _check_policy(self, policy_id: str) -> None:
        if policy_id != self._front.policy_id:
            raise NotFound("policy", policy_id, f"this learner trains {self._front.policy_id!r}")

    def _manifest(self, export: Export) -> policy_pb2.WeightManifest:
        return policy_pb2.WeightManifest(
            policy_id=self._front.policy_id,
            version=_version(export.version),
            tied_embeddings=self._front.model.tied_embeddings,
            tensors=[
                policy_pb2.TensorSpec(
                    name=tensor.spec.name,
                    shape=tensor.spec.shape,
                    dtype=tensor.spec.dtype,
                    sha256=digest,
                    byte_size=tensor.spec.byte_size,
                )
                for tensor, digest in export.tensors
            ],
        )


def _check_digest(field: str, digest: bytes) -> None:
    if len(digest) != _DIGEST_BYTES:
        raise InvalidArgument(field, f"has {len(digest)} bytes: send the SHA-256 of the batch, {_DIGEST_BYTES} bytes")


def _version(version: Version) -> common_pb2.PolicyVersion:
    return common_pb2.PolicyVersion(lineage=version.lineage, number=version.number)


def _operation(operation: Operation, event: Event) -> learner_pb2.Operation:
    message = learner_pb2.Operation(name=operation.name, done=event.done)
    if event.failure is not None:
        message.error.code = grpc.StatusCode[event.failure.code].value[0]
        message.error.message = event.failure.message
    if event.step is not None:
        message.train_step.CopyFrom(_train_step(event.step))
    if event.checkpoint is not None:
        ledger = event.checkpoint.ledger
        message.checkpoint.CopyFrom(
            learner_pb2.CheckpointInfo(
                uri=event.checkpoint.uri,
                version=_version(ledger.version),
                step=ledger.applied_step,
                digest=ledger.applied_digest,
                byte_size=event.checkpoint.byte_size,
            )
        )
    return message


def _train_step(applied: AppliedStep) -> learner_pb2.TrainStepResult:
    return learner_pb2.TrainStepResult(
        step=applied.step,
        digest=applied.digest,
        version=_version(applied.version),
        metrics=applied.metrics,
    )
