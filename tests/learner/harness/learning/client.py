"""Calls of one run to one learner, as its orchestrator makes them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import grpc
import pytest
from troupe.v1 import common_pb2, learner_pb2, learner_pb2_grpc
from troupe_contracts import batch as contract

_START_SECONDS = 240
_STATES_AT_WORK = (learner_pb2.GANG_STATE_RESTARTING, learner_pb2.GANG_STATE_TRAINING)


@dataclass
class Client:
    """Calls of one run to one learner; every request can be bent by keyword."""

    # A string: the class exists in the stubs only.
    stub: "learner_pb2_grpc.LearnerAsyncStub"
    run_id: str = "run"
    policy_id: str = "policy"
    token: int = 7

    @classmethod
    def of(cls, channel: grpc.aio.Channel) -> "Client":
        return cls(learner_pb2_grpc.LearnerStub(channel))

    @property
    def fence(self) -> common_pb2.Fence:
        return common_pb2.Fence(store_id="store", token=self.token)

    async def submit(
        self, step: int, sequences: list[learner_pb2.Sequence], **bent: object
    ) -> learner_pb2.SubmitBatchResponse:
        fields: dict[str, object] = {
            "fence": self.fence,
            "run_id": self.run_id,
            "policy_id": self.policy_id,
            "step": step,
            "digest": contract.digest(sequences),
            "sequence_count": len(sequences),
        } | bent

        async def messages() -> AsyncIterator[learner_pb2.SubmitBatchRequest]:
            yield learner_pb2.SubmitBatchRequest(header=learner_pb2.BatchHeader(**fields))  # type: ignore[arg-type]
            for start in range(0, len(sequences), 7):
                chunk = learner_pb2.SequenceChunk(sequences=sequences[start : start + 7])
                yield learner_pb2.SubmitBatchRequest(chunk=chunk)

        return await self.stub.SubmitBatch(messages())

    async def start_step(
        self, step: int, sequences: list[learner_pb2.Sequence], **bent: object
    ) -> learner_pb2.Operation:
        optimization: dict[str, object] = {
            "learning_rate": 1e-3,
            "mini_batches": 2,
            "clip_low": 0.2,
            "clip_high": 0.28,
            "max_grad_norm": 1.0,
            "scale_by_mini_batches": True,
        } | {name: value for name, value in bent.items() if name not in ("digest", "fence", "run_id")}
        fields: dict[str, object] = {
            "fence": self.fence,
            "run_id": self.run_id,
            "digest": contract.digest(sequences),
        } | {name: value for name, value in bent.items() if name in ("digest", "fence", "run_id")}
        return await self.stub.TrainStep(
            learner_pb2.TrainStepRequest(
                policy_id=self.policy_id,
                step=step,
                optimization=learner_pb2.Optimization(**optimization),  # type: ignore[arg-type]
                **fields,  # type: ignore[arg-type]
            )
        )

    async def train(
        self, step: int, sequences: list[learner_pb2.Sequence], **bent: object
    ) -> learner_pb2.TrainStepResult:
        """Trains a step; the first one of a learner that nobody has begins this run."""
        if not (await self.get()).run_id:
            assert not (await self.bind(self.run_id)).HasField("error")
        await self.submit(step, sequences)
        done = await self.finished(await self.start_step(step, sequences, **bent))
        assert not done.HasField("error"), done.error
        return done.train_step

    async def finished(self, operation: learner_pb2.Operation) -> learner_pb2.Operation:
        async for event in self.stub.WatchOperation(learner_pb2.WatchOperationRequest(name=operation.name)):
            operation = event.operation
        assert operation.done
        return operation

    async def save(self, uri: str, **bent: object) -> learner_pb2.Operation:
        """Saves what is current, unless told what."""
        state = await self.get()
        fields: dict[str, object] = {"run_id": state.run_id, "step": state.applied_step} | bent
        request = learner_pb2.SaveCheckpointRequest(
            fence=self.fence,
            policy_id=self.policy_id,
            uri=uri,
            **fields,  # type: ignore[arg-type]
        )
        return await self.finished(await self.stub.SaveCheckpoint(request))

    async def restore(self, uri: str) -> learner_pb2.Operation:
        request = learner_pb2.RestoreCheckpointRequest(fence=self.fence, policy_id=self.policy_id, uri=uri)
        return await self.finished(await self.stub.RestoreCheckpoint(request))

    async def bind(self, run_id: str, uri: str = "") -> learner_pb2.Operation:
        """Begins a run; calls that follow are that run's."""
        done = await self.finished(await self.start_binding(run_id, uri))
        if not done.HasField("error"):
            self.run_id = run_id
        return done

    async def start_binding(self, run_id: str, uri: str = "", **bent: object) -> learner_pb2.Operation:
        fields: dict[str, object] = {"fence": self.fence, "policy_id": self.policy_id} | bent
        request = learner_pb2.BindRunRequest(run_id=run_id, uri=uri, **fields)  # type: ignore[arg-type]
        return await self.stub.BindRun(request)

    async def get(self) -> learner_pb2.LearnerInfo:
        return await self.stub.GetLearner(learner_pb2.GetLearnerRequest())

    async def ready(self) -> learner_pb2.LearnerInfo:
        async with asyncio.timeout(_START_SECONDS):
            while (state := await self.get()).state in _STATES_AT_WORK:
                await asyncio.sleep(0.05)
        assert state.state == learner_pb2.GANG_STATE_READY, state
        return state

    async def digests(self) -> dict[str, str]:
        """SHA-256 of each tensor of the current weights."""
        request = learner_pb2.ExportWeightsRequest(policy_id=self.policy_id, manifest_only=True)
        (response,) = [each async for each in self.stub.ExportWeights(request)]
        return {tensor.name: tensor.sha256.hex() for tensor in response.manifest.tensors}

    async def score(self, *rows: list[int]) -> learner_pb2.ScoreResponse:
        sequences = [learner_pb2.ScoreSequence(token_ids=row) for row in rows]
        return await self.stub.Score(learner_pb2.ScoreRequest(policy_id=self.policy_id, sequences=sequences))

    async def weights(self) -> tuple[object, dict[str, bytes]]:
        """The manifest, and the bytes of each tensor."""
        manifest, found = None, dict[str, bytes]()
        request = learner_pb2.ExportWeightsRequest(policy_id=self.policy_id)
        async for response in self.stub.ExportWeights(request):
            if response.HasField("manifest"):
                manifest = response.manifest
                continue
            held = found.setdefault(response.chunk.name, b"")
            assert response.chunk.offset == len(held)
            assert len(response.chunk.data) <= 1 << 20
            found[response.chunk.name] = held + response.chunk.data
        return manifest, found


@contextlib.contextmanager
def refused(code: grpc.StatusCode, *texts: str) -> Iterator[None]:
    """The block's call ends with this code and says each of these."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield
    assert caught.value.code() == code, caught.value.details()
    for text in texts:
        assert text in (caught.value.details() or "")


def failed(operation: learner_pb2.Operation, code: grpc.StatusCode, *texts: str) -> None:
    """The operation has ended with this code and says each of these."""
    assert operation.error.code == code.value[0], operation
    for text in texts:
        assert text in operation.error.message


async def next_step(learner: Client) -> int:
    """The step that the learner can train, once it can work; one that nobody has becomes this run's."""
    state = await learner.ready()
    if not state.run_id:
        assert not (await learner.bind(learner.run_id)).HasField("error")
    return int(state.applied_step) + 1
