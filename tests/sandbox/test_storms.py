"""Right, wrong and hostile programs of many clients at once, some given up: each verdict is its own, and nothing stays."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

import grpc
import pytest
from sandboxed import metrics, stdin_tests
from troupe.v1 import common_pb2, sandbox_pb2, sandbox_pb2_grpc
from troupe.v1.sandbox_pb2 import Verdict
from troupe_contracts.errors import INFRASTRUCTURE_CODES

CLIENTS, CALLS = 6, 15
BRIEF = sandbox_pb2.Limits(cpu_seconds=0.3, wall_seconds=3.0, memory_bytes=64 << 20, output_bytes=1 << 16)
INFRASTRUCTURE = {code.name for code in INFRASTRUCTURE_CODES}
# Programs that should say the double of what they read, and how each ends. In `full` one that is the only case is process 1
# of a namespace, which does not end itself by SIGKILL.
PROGRAMS = [
    ("print(int(input()) * 2)", Verdict.VERDICT_OK),
    ("import sys; sys.stdout.write(str(int(sys.stdin.read()) * 2))", Verdict.VERDICT_OK),
    ("from threading import Thread\nThread(target=lambda: print(2 * int(input()))).start()", Verdict.VERDICT_OK),
    ("open('left', 'w')", Verdict.VERDICT_RUNTIME_ERROR),
    ("print(int(input()) * 2 + 1)", Verdict.VERDICT_WRONG_ANSWER),
    ("pass", Verdict.VERDICT_WRONG_ANSWER),
    ("raise ValueError(input())", Verdict.VERDICT_RUNTIME_ERROR),
    ("import os; os._exit(7)", Verdict.VERDICT_RUNTIME_ERROR),
    ("import os; os.kill(os.getpid(), 9)", Verdict.VERDICT_RUNTIME_ERROR),
    ("while True: pass", Verdict.VERDICT_CPU_LIMIT),
    ("import os\nwhile True: os.write(1, b'x' * 65536)", Verdict.VERDICT_OUTPUT_LIMIT),
    ("kept = []\nwhile True: kept.append(bytearray(1 << 22))", Verdict.VERDICT_MEMORY_LIMIT),
    ("import os\nwhile True: os.fork()", Verdict.VERDICT_PROCESS_LIMIT),
    ("import socket; socket.socket()", Verdict.VERDICT_POLICY_VIOLATION),
]  # fmt: skip
SCRIPT = """
import sys
from workflow import AgentNode, Workflow
flow = Workflow("asks")
flow.add_node(AgentNode("solver", "You solve."))
said = flow.run(question).content
print(said)
"""


class Storm:
    """Calls of clients that know nothing of one another."""

    def __init__(self, stub: sandbox_pb2_grpc.SandboxAsyncStub, seed: int, kills: bool) -> None:
        self._stub = stub
        self._random = Random(seed)
        self._kills = kills
        self.judged = 0

    async def client(self) -> None:
        for _ in range(CALLS):
            call: Callable[[], Awaitable[None]] = self._random.choice((self._solution, self._solution, self._script))
            # One in four gives up, at any moment.
            patience = self._random.uniform(0.0, 0.1) if self._random.random() < 0.25 else 60.0
            try:
                await asyncio.wait_for(call(), patience)
            except TimeoutError:
                assert patience < 1.0, "a call is not answered"
            except grpc.aio.AioRpcError as error:
                if not self._kills or error.code().name not in INFRASTRUCTURE:
                    raise

    async def _solution(self) -> None:
        program, verdict = self._random.choice(PROGRAMS)
        numbers = [self._random.randrange(10**9) for _ in range(self._random.randint(2, 5))]
        mode = self._random.choice((sandbox_pb2.TEST_MODE_STRICT, sandbox_pb2.TEST_MODE_BATCH))
        request = stdin_tests(program, *((str(number), str(2 * number)) for number in numbers), limits=BRIEF, mode=mode)
        responses = [response async for response in self._stub.RunTests(request)]
        verdicts = [each.case_result.verdict for each in responses if each.HasField("case_result")]
        assert verdicts == [verdict] * len(numbers), (program, [Verdict.Name(each) for each in verdicts], mode)
        self.judged += 1

    async def _script(self) -> None:
        number = str(self._random.randrange(10**9))
        call = self._stub.RunWorkflow()
        begin = sandbox_pb2.StartWorkflow(
            script=SCRIPT, task_type=common_pb2.TASK_TYPE_MATH, question=f"what is {number}?"
        )
        try:
            await call.write(sandbox_pb2.RunWorkflowRequest(start=begin))
            async for response in call:
                if response.HasField("agent_call"):
                    assert number in response.agent_call.messages[-1].content
                    await asyncio.sleep(self._random.random() * 0.05)
                    reply = sandbox_pb2.AgentReply(call_id=response.agent_call.call_id, text=f"it is {number}")
                    await call.write(sandbox_pb2.RunWorkflowRequest(agent_reply=reply))
                elif response.HasField("outcome"):
                    assert response.outcome.stdout == f"it is {number}\n", response.outcome
                    self.judged += 1
        except asyncio.InvalidStateError:
            # A stream that ended is written to; its status says why it ended.
            raise await _status(call) from None
        finally:
            call.cancel()


async def _status(call: grpc.aio.Call) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(await call.code(), grpc.aio.Metadata(), grpc.aio.Metadata(), await call.details())


def descriptors(process: int) -> int:
    return len(list(Path(f"/proc/{process}/fd").iterdir()))


async def kills(children: Callable[[], set[int]], seed: int) -> None:
    """Ends any of the service's processes now and then."""
    random = Random(seed)
    while True:
        await asyncio.sleep(random.uniform(0.05, 0.5))
        with contextlib.suppress(ProcessLookupError, IndexError):
            os.kill(random.choice(sorted(children())), signal.SIGKILL)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("killing", [False, True], ids=["undisturbed", "killed"])
@pytest.mark.parametrize("profile", ["full", "pod"])
async def test_each_program_of_a_storm_has_its_own_verdict_and_nothing_stays(launch, tmp_path, profile, killing):
    server = await asyncio.to_thread(launch, tmp_path, "--test-slots", "3", "--workflow-slots", "4", profile=profile)
    async with grpc.aio.insecure_channel(server.target) as channel:
        stub = sandbox_pb2_grpc.SandboxStub(channel)
        warm = Storm(stub, 0, kills=False)
        await warm.client()
        children, open_files = len(server.children()), descriptors(server.process.pid)
        storm = Storm(stub, 1, killing)
        killer = asyncio.create_task(kills(server.children, 2)) if killing else None
        async with asyncio.TaskGroup() as clients:
            for _ in range(CLIENTS):
                clients.create_task(storm.client())
        if killer is not None:
            killer.cancel()
        assert storm.judged > CLIENTS * CALLS * (0.3 if killing else 0.6)
        async with asyncio.timeout(30):
            while True:
                seen = await asyncio.to_thread(metrics, server.metrics)
                busy = sum(
                    value
                    for name, value in seen.items()
                    if name.startswith(("troupe_sandbox_running", "troupe_sandbox_queued"))
                )
                if (
                    not busy
                    and len(server.children()) <= children
                    and descriptors(server.process.pid) <= open_files + 8
                ):
                    break
                await asyncio.sleep(0.1)
        after = Storm(stub, 3, kills=False)
        await after.client()
    assert await asyncio.to_thread(server.stop) == 0
