"""Many streams at once over few connections."""

import asyncio

import grpc
import pytest
from sandboxed import metrics
from troupe.v1 import common_pb2, sandbox_pb2, sandbox_pb2_grpc

SLOTS = 4


@pytest.mark.parametrize("streams", [500, pytest.param(10_000, marks=pytest.mark.long)])
async def test_streams_that_wait_by_the_thousand_disturb_nothing(launch, tmp_path, streams):
    server = await asyncio.to_thread(
        launch, tmp_path, "--workflow-slots", str(SLOTS), "--workflow-queue", str(streams), "--drain-seconds", "1"
    )
    sleeper = sandbox_pb2.RunWorkflowRequest(
        start=sandbox_pb2.StartWorkflow(
            script="import time; time.sleep(600)", task_type=common_pb2.TASK_TYPE_MATH, question="x" * 1000
        )
    )
    async with grpc.aio.insecure_channel(server.target) as channel:
        stub = sandbox_pb2_grpc.SandboxStub(channel)
        calls = [stub.RunWorkflow() for _ in range(streams)]
        for call in calls:
            await call.write(sleeper)
        samples = {}
        while samples.get('troupe_sandbox_queued{pool="workflow"}') != streams - SLOTS:
            await asyncio.sleep(0.05)
            samples = await asyncio.to_thread(metrics, server.metrics)
        # On the same connection, beside all of them.
        report = await stub.GetIsolation(sandbox_pb2.GetIsolationRequest(), timeout=30)
        assert (report.workflows_running, report.workflows_queued) == (SLOTS, streams - SLOTS)
        # All are given up at once; the connection survives it.
        for call in calls:
            call.cancel()
        while report.workflows_running + report.workflows_queued:
            await asyncio.sleep(0.05)
            report = await stub.GetIsolation(sandbox_pb2.GetIsolationRequest(), timeout=30)
        request = sandbox_pb2.RunTestsRequest(
            solution="print(1)",
            stdin_tests=sandbox_pb2.StdinTests(
                cases=[sandbox_pb2.StdinCase(expected_stdout="1")], checker=sandbox_pb2.CHECKER_TOKENS
            ),
        )
        responses = [response async for response in stub.RunTests(request, timeout=30)]
        assert responses[-1].outcome.passed
    assert await asyncio.to_thread(server.stop) == 0
