"""The clients against the stand-in orchestrator in this process."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from standin.orchestrator import Evaluation, Solver, Training
from troupe.v1 import evaluation_pb2_grpc, solver_pb2_grpc, training_pb2, training_pb2_grpc
from troupe_client import sdk
from troupe_client.sdk import Client, SyncClient
from troupe_contracts.calls import CallLimits
from troupe_contracts.server import Running, start
from troupe_contracts.settings import ServiceSettings


@pytest_asyncio.fixture
async def running() -> AsyncIterator[Running]:
    def register(server: grpc.aio.Server) -> None:
        training_pb2_grpc.add_TrainingServicer_to_server(Training(), server)  # type: ignore[abstract]
        evaluation_pb2_grpc.add_EvaluationServicer_to_server(Evaluation(), server)  # type: ignore[abstract]
        solver_pb2_grpc.add_SolverServicer_to_server(Solver(), server)

    running = await start(ServiceSettings(), register, ["troupe.v1.Training"])
    yield running
    await running.drain(0)


async def test_a_watch_goes_on_from_the_last_event_after_its_connection_was_lost(running: Running) -> None:
    async with Client(running.target) as client:
        events = [event async for event in client.watch_run("r-1")]
    committed = [event.event_id for event in events if event.HasField("step_committed")]
    assert committed == [1, 2]


class Quiet(Training):
    """Each watch is quiet before its next event; after the first event connections are lost, so many of them again."""

    def __init__(self, seconds: float, lost: int = 0) -> None:
        super().__init__()
        self._seconds = seconds
        self._lost = lost
        self.after: list[int] = []
        """Last event ids that watches came with."""

    async def WatchRun(
        self, request: training_pb2.WatchRunRequest, context: Any
    ) -> AsyncIterator[training_pb2.RunEvent]:
        self.after.append(request.after_event_id)
        await asyncio.sleep(self._seconds)
        if request.after_event_id and self._lost:
            self._lost -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "connection lost")
        for event_id in range(request.after_event_id + 1, 3):
            yield training_pb2.RunEvent(event_id=event_id)
            if event_id == 1:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "connection lost")


async def watched(training: Quiet, limits: CallLimits) -> list[int]:
    """Ids of the events that a watch of a quiet run sees, until the run has ended."""
    running = await start(
        ServiceSettings(),
        lambda server: training_pb2_grpc.add_TrainingServicer_to_server(training, server),  # type: ignore[arg-type]
        ["troupe.v1.Training"],
        limits=limits,
    )
    try:
        async with Client(running.target) as client, asyncio.timeout(30):
            return [event.event_id async for event in client.watch_run("r-1")]
    finally:
        await running.drain(0)


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdk, "_AWAY_SECONDS", 0.3)
    monkeypatch.setattr(sdk, "_CONNECTING_SECONDS", 0.2, raising=False)
    monkeypatch.setattr(sdk, "_RECONNECT_SECONDS", 0.05)


@pytest.mark.usefixtures("short_patience")
async def test_a_watch_survives_connections_that_are_lost_after_a_quiet_time() -> None:
    training = Quiet(seconds=0.6, lost=3)
    assert await watched(training, CallLimits()) == [1, 2]
    assert training.after == [0, 1, 1, 1, 1]


@pytest.mark.usefixtures("short_patience")
async def test_a_watch_that_the_server_ends_as_idle_goes_on_from_the_last_event() -> None:
    class Silent(Quiet):
        async def WatchRun(
            self, request: training_pb2.WatchRunRequest, context: Any
        ) -> AsyncIterator[training_pb2.RunEvent]:
            self.after.append(request.after_event_id)
            if len(self.after) == 1:
                yield training_pb2.RunEvent(event_id=1)
            if len(self.after) < 4:
                await asyncio.sleep(3600)
            yield training_pb2.RunEvent(event_id=2)

    training = Silent(seconds=0)
    assert await watched(training, CallLimits(idle=0.4)) == [1, 2]
    assert training.after == [0, 1, 1, 1]


@pytest.mark.usefixtures("short_patience")
async def test_a_watch_gives_up_on_a_server_that_stays_away() -> None:
    began = time.monotonic()
    async with Client("127.0.0.1:1") as client, asyncio.timeout(30):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [event async for event in client.watch_run("r-1")]
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert time.monotonic() - began > 0.3


async def test_a_watch_of_what_does_not_exist_fails_at_once(running: Running) -> None:
    async with Client(running.target) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.execution("nothing")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_lists_are_read_to_their_last_page(running: Running) -> None:
    async with Client(running.target) as client:
        assert [run.run_id async for run in client.runs()] == ["r-2", "r-1"]
        assert [item.problem_id async for item in client.eval_items("e-1")] == ["p1", "p2"]


async def test_the_synchronous_client_does_the_same(running: Running) -> None:
    def use() -> None:
        with SyncClient(running.target) as client:
            assert [run.run_id for run in client.runs()] == ["r-2", "r-1"]
            assert client.get_run("r-1").total_steps == 2
            events = [event.WhichOneof("event") for event in client.solve("What is 6 * 7?")]
            assert events == ["design", "turn", "tool_run", "answer"]
            with pytest.raises(grpc.RpcError):
                client.execution("nothing")

    await asyncio.to_thread(use)
