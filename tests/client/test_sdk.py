"""The clients against the stand-in orchestrator in this process."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio
from standin.orchestrator import Evaluation, Solver, Training
from troupe.v1 import evaluation_pb2_grpc, solver_pb2_grpc, training_pb2_grpc
from troupe_client.sdk import Client, SyncClient
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
