"""Many streams at once over few connections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest
from sandboxed import ONE_AGENT, metrics, stdin_tests
from troupe.v1 import common_pb2, sandbox_pb2, sandbox_pb2_grpc

SLOTS = 4
CONNECTIONS = 4
DEADLINE = 3600.0
SLEEPER = "import time; time.sleep(3000)"
PATIENT = sandbox_pb2.Limits(wall_seconds=1800)
# Records of calls that are kept for as many to come, and the pages on which they lie.
KEPT_BYTES = 64 << 20


def start(script: str, question: str, **fields: object) -> sandbox_pb2.RunWorkflowRequest:
    task_type = common_pb2.TASK_TYPE_MATH
    first = sandbox_pb2.StartWorkflow(script=script, task_type=task_type, question=question, **fields)
    return sandbox_pb2.RunWorkflowRequest(start=first)


@pytest.mark.parametrize("streams", [500, pytest.param(10_000, marks=pytest.mark.long)])
async def test_streams_that_wait_by_the_thousand_disturb_nothing(launch, tmp_path, streams):
    server = await asyncio.to_thread(
        launch, tmp_path, "--workflow-slots", str(SLOTS), "--workflow-queue", str(streams), "--drain-seconds", "1"
    )
    sleeper = start(SLEEPER, "x" * 1000)
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
        request = stdin_tests("print(1)", ("", "1"))
        responses = [response async for response in stub.RunTests(request, timeout=30)]
        assert responses[-1].outcome.passed
    assert await asyncio.to_thread(server.stop) == 0


async def script_is_right(stub: sandbox_pb2_grpc.SandboxAsyncStub, number: int, sent: Callable[[], None]) -> bool:
    """Whether the script of one stream asks what was to be asked and gives what was answered."""
    call = stub.RunWorkflow(timeout=DEADLINE)
    await call.write(start(ONE_AGENT, f"the question {number}"))
    sent()
    asked = 0
    async for response in call:
        if response.HasField("agent_call"):
            asked += f"the question {number}" in response.agent_call.messages[-1].content
            reply = sandbox_pb2.AgentReply(call_id=response.agent_call.call_id, text=rf"\boxed{{{number}}}")
            await call.write(sandbox_pb2.RunWorkflowRequest(agent_reply=reply))
        elif response.HasField("outcome"):
            ended = response.outcome
            return bool(asked == 1 and ended.verdict == sandbox_pb2.VERDICT_OK and str(number) in ended.result)
    return False


async def solution_is_right(stub: sandbox_pb2_grpc.SandboxAsyncStub, number: int, sent: Callable[[], None]) -> bool:
    """Whether the solution of one stream passes its own case, and no other."""
    call = stub.RunTests(stdin_tests("print(int(input()) + 1)", (str(number), str(number + 1))), timeout=DEADLINE)
    sent()
    responses = [response async for response in call]
    return len(responses) == 2 and responses[-1].outcome.passed


def footprint(pid: int) -> tuple[int, int]:
    """Private bytes and descriptors of a process."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    private = sum(int(line.split()[1]) for line in rollup if line.startswith("Private_"))
    return private * 1024, len(list(Path(f"/proc/{pid}/fd").iterdir()))


@pytest.mark.parametrize("streams", [200, pytest.param(10_000, marks=pytest.mark.long)])
async def test_streams_that_wait_by_the_thousand_all_end_right_and_leave_nothing(launch, tmp_path, streams):
    scripts = streams // 2
    sizes = ["--workflow-slots", str(SLOTS), "--test-slots", "2"]
    queues = ["--workflow-queue", str(streams), "--test-queue", str(streams)]
    server = await asyncio.to_thread(launch, tmp_path, *sizes, *queues)
    async with AsyncExitStack() as connections:
        own = [("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.aio.insecure_channel(server.target, options=own) for _ in range(CONNECTIONS)]
        stubs = [sandbox_pb2_grpc.SandboxStub(await connections.enter_async_context(channel)) for channel in channels]

        async def all_wait_and_end() -> None:
            """Every slot is held until all streams are open and wait; then all of them run."""
            holds: list[grpc.aio.Call] = []
            for _ in range(SLOTS):
                script = stubs[0].RunWorkflow()
                await script.write(start(SLEEPER, "", limits=PATIENT))
                holds.append(script)
            holds += [stubs[0].RunTests(stdin_tests(SLEEPER, ("", ""), limits=PATIENT)) for _ in range(2)]
            await held((SLOTS, 2))
            sent = 0

            def count() -> None:
                nonlocal sent
                sent += 1

            kinds = (script_is_right, solution_is_right)
            runs: list[Awaitable[bool]] = [
                asyncio.create_task(kinds[number % 2](stubs[number // 2 % CONNECTIONS], number, count))
                for number in range(streams)
            ]
            while sent < streams:
                await asyncio.sleep(0.05)
            await waiting(scripts, streams - scripts)
            for hold in holds:
                hold.cancel()
            assert all(await asyncio.gather(*runs))

        async def held(slots: tuple[int, int]) -> None:
            running = (-1, -1)
            while running != slots:
                await asyncio.sleep(0.05)
                report = await stubs[0].GetIsolation(sandbox_pb2.GetIsolationRequest(), timeout=30)
                running = (report.workflows_running, report.tests_running)

        async def waiting(scripts: int, tests: int) -> None:
            queued = (-1.0, -1.0)
            while queued != (scripts, tests):
                await asyncio.sleep(0.05)
                said = await asyncio.to_thread(metrics, server.metrics)
                jobs = said['troupe_sandbox_queued{pool="test_job"}'] + said['troupe_sandbox_running{pool="test_job"}']
                queued = (said['troupe_sandbox_queued{pool="workflow"}'], jobs - 2)

        for stub in stubs:
            await stub.GetIsolation(sandbox_pb2.GetIsolationRequest(), timeout=30)
        before = footprint(server.process.pid)
        began = time.monotonic()
        await all_wait_and_end()
        seconds = time.monotonic() - began
        await held((0, 0))
        after, deadline = footprint(server.process.pid), time.monotonic() + 30
        # A second after a crowd has left, what the allocator kept for it is given back.
        while after[0] - before[0] >= KEPT_BYTES and time.monotonic() < deadline:
            await asyncio.sleep(0.2)
            after = footprint(server.process.pid)
        print(f"{streams} streams in {seconds:.0f} s: bytes and descriptors {before} before, {after} after")
        assert after[1] == before[1]
        assert after[0] - before[0] < KEPT_BYTES
    assert await asyncio.to_thread(server.stop) == 0
