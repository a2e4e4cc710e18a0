"""How long the orchestrator waits for a learner: as long as there is progress. The learner is a stand-in."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, cast

import grpc
import numpy as np
import pytest
from troupe.v1 import common_pb2, learner_pb2, learner_pb2_grpc
from troupe_contracts.calls import Context
from troupe_contracts.server import start
from troupe_contracts.settings import ServiceSettings
from troupe_orchestrator.fleet import PolicyFleet
from troupe_orchestrator.training import learning
from troupe_orchestrator.training.batch import TrainingSequence
from troupe_orchestrator.training.endings import ending_of
from troupe_orchestrator.training.learner import (
    LearnerClient,
    LearnerDiskFullError,
    LearnerError,
    OperationStalledError,
)
from troupe_orchestrator.training.learning import Learning
from troupe_orchestrator.training.policies import Policy

STALL_SECONDS = 1.0
FENCE = common_pb2.Fence(store_id="store", token=1)
VERSION = common_pb2.PolicyVersion(lineage="first", number=4)


class SlowLearner(learner_pb2_grpc.LearnerServicer):
    """Trains until it is let go; tells of progress if it is to."""

    def __init__(self) -> None:
        self.tells = True
        self.events = 12
        self.refuses_as_too_large = False
        self.deadlines: dict[str, float] = {}
        self.info = learner_pb2.LearnerInfo(policy_id="p", state=learner_pb2.GANG_STATE_READY)

    async def GetLearner(self, request: learner_pb2.GetLearnerRequest, context: Context) -> learner_pb2.LearnerInfo:
        return self.info

    async def SubmitBatch(
        self, requests: AsyncIterator[learner_pb2.SubmitBatchRequest], context: Context
    ) -> learner_pb2.SubmitBatchResponse:
        self.deadlines["SubmitBatch"] = context.time_remaining() or 0.0
        if self.refuses_as_too_large:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max")
        async for _ in requests:
            pass
        return learner_pb2.SubmitBatchResponse()

    async def Score(self, request: learner_pb2.ScoreRequest, context: Context) -> learner_pb2.ScoreResponse:
        self.deadlines["Score"] = context.time_remaining() or 0.0
        return learner_pb2.ScoreResponse(
            version=VERSION, scores=[learner_pb2.SequenceScore() for _ in request.sequences]
        )

    async def TrainStep(self, request: learner_pb2.TrainStepRequest, context: Context) -> learner_pb2.Operation:
        return learner_pb2.Operation(name="operations/7-train")

    async def WatchOperation(
        self, request: learner_pb2.WatchOperationRequest, context: Context
    ) -> AsyncIterator[learner_pb2.OperationEvent]:
        under_way = learner_pb2.Operation(name=request.name)
        yield learner_pb2.OperationEvent(event_id=1, operation=under_way)
        if not self.tells:
            await asyncio.Event().wait()
        for number in range(self.events):
            await asyncio.sleep(STALL_SECONDS / 6)
            yield learner_pb2.OperationEvent(event_id=number + 2, progress=number / self.events, operation=under_way)
        done = learner_pb2.Operation(
            name=request.name, done=True, train_step=learner_pb2.TrainStepResult(step=1, metrics={"loss": 2.0})
        )
        yield learner_pb2.OperationEvent(event_id=self.events + 2, progress=1.0, operation=done)
        self.info.operation, self.info.state = "", learner_pb2.GANG_STATE_READY


@contextlib.asynccontextmanager
async def connected(learner: SlowLearner) -> AsyncIterator[LearnerClient]:
    def register(server: grpc.aio.Server) -> None:
        learner_pb2_grpc.add_LearnerServicer_to_server(learner, server)

    running = await start(ServiceSettings(), register, ["troupe.v1.Learner"])
    try:
        yield await LearnerClient.connect(running.target, STALL_SECONDS)
    finally:
        await running.drain(0)


def sequence(tokens: int) -> TrainingSequence:
    zeros = np.zeros(tokens, dtype=np.float32)
    return TrainingSequence("s", np.ones(tokens, dtype=np.int64), zeros, zeros, zeros)


async def test_a_step_may_take_as_long_as_it_needs_while_it_tells_of_progress() -> None:
    learner = SlowLearner()
    async with connected(learner) as client:
        result = await client.train(FENCE, "run", 1, b"d" * 32, [sequence(3)], {"learning_rate": 1e-3})
    assert result.metrics["loss"] == 2.0


async def test_an_operation_that_tells_of_no_progress_is_a_fault_that_names_it_and_pauses_the_run() -> None:
    learner = SlowLearner()
    learner.tells = False
    async with connected(learner) as client:
        with pytest.raises(OperationStalledError) as stalled:
            await client.train(FENCE, "run", 1, b"d" * 32, [sequence(3)], {"learning_rate": 1e-3})
        for part in ("operations/7-train", client.target, "TROUPE_STALL_SECONDS"):
            assert part in str(stalled.value)
        with pytest.raises(OperationStalledError):
            await client.settled("operations/7-train")
    ending = ending_of(stalled.value)
    assert ending.condition is not None
    assert (ending.state, ending.condition.reason) == ("paused", "LearnerStalled")


def looking(client: LearnerClient) -> tuple[Learning, Policy]:
    return Learning(cast("Any", None), "run"), Policy("p", client, PolicyFleet([]), ("executor",))


async def test_a_learner_in_the_middle_of_a_step_that_another_orchestrator_began_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(learning, "_READY_SECONDS", 0.1)
    learner = SlowLearner()
    learner.info.operation, learner.info.state = "operations/7-train", learner_pb2.GANG_STATE_TRAINING
    async with connected(learner) as client:
        looks, policy = looking(client)
        assert (await looks.look(policy)).state == learner_pb2.GANG_STATE_READY


async def test_a_learner_that_waits_for_room_on_its_disk_pauses_the_run_by_name() -> None:
    learner = SlowLearner()
    learner.info.state, learner.info.detail = (
        learner_pb2.GANG_STATE_DISK_FULL,
        "/work/ranks cannot be written: make room",
    )
    async with connected(learner) as client:
        looks, policy = looking(client)
        with pytest.raises(LearnerDiskFullError, match="/work/ranks") as full:
            await looks.look(policy)
    ending = ending_of(full.value)
    assert ending.condition is not None
    assert (ending.state, ending.condition.reason) == ("paused", "DiskFull")


async def test_a_message_that_grpc_finds_too_large_is_no_full_disk() -> None:
    learner = SlowLearner()
    learner.refuses_as_too_large = True
    async with connected(learner) as client:
        with pytest.raises(LearnerError, match="RESOURCE_EXHAUSTED: Received message larger than max") as refused:
            await client.train(FENCE, "run", 1, b"d" * 32, [sequence(3)], {"learning_rate": 1e-3})
    assert not isinstance(refused.value, LearnerDiskFullError)


async def test_calls_that_carry_tokens_have_the_longer_the_more_tokens_there_are() -> None:
    learner = SlowLearner()
    async with connected(learner) as client:
        small, large = [], []
        for found, tokens in ((small, 10), (large, 400_000)):
            await client.train(FENCE, "run", 1, b"d" * 32, [sequence(tokens)], {"learning_rate": 1e-3})
            await client.log_probs([[1] * tokens], VERSION)
            found += [learner.deadlines["SubmitBatch"], learner.deadlines["Score"]]
    assert all(seconds < 61 for seconds in small)
    assert large[0] > 75
    assert large[1] > 3600


async def test_scores_of_other_weights_than_those_that_were_asked_for_are_none() -> None:
    async with connected(SlowLearner()) as client:
        assert len(await client.log_probs([[1, 2]], VERSION)) == 1
        with pytest.raises(LearnerError, match=r"has version first/4, first/3 was to be scored"):
            await client.log_probs([[1, 2]], common_pb2.PolicyVersion(lineage="first", number=3))
