"""The examples of clients, as a user runs them."""

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from orchestrated.child import Child, child
from orchestrated.models import GUESS, SINGLE
from orchestrated.world import Backends, lines, math_task
from troupe.v1 import evaluation_pb2, evaluation_pb2_grpc
from troupe_contracts.calls import CallLimits
from troupe_contracts.server import start
from troupe_contracts.settings import ServiceSettings

pytestmark = pytest.mark.asyncio(loop_scope="session")

EXAMPLES = Path(__file__).parents[3] / "examples"


async def ran(*command: str | Path) -> str:
    """What a command that succeeds prints."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, said.decode()
    return said.decode()


def problems(folder: Path, backends: Backends) -> Path:
    """Two problems, one of which is solved."""
    rows = [math_task("easy"), math_task("hard")]
    backends.designer.scripts[str(rows[0]["question"])] = [SINGLE]
    backends.designer.scripts[str(rows[1]["question"])] = [GUESS]
    file = folder / "problems.jsonl"
    file.write_text(lines(*rows))
    return file


async def test_the_python_client_tells_each_item_and_the_summary(
    tmp_path: Path, stand_ins: Backends, sandbox: str
) -> None:
    async with child(tmp_path / "world", stand_ins, sandbox) as served:
        said = await ran(sys.executable, EXAMPLES / "eval_client.py", served.target, problems(tmp_path, stand_ins))
    *items, summary = said.splitlines()
    assert sorted(line.split(maxsplit=1)[1] for line in items) == [
        *["easy: True 42"] * 2,
        *["hard: False 41"] * 2,
    ]
    assert "success 0.500, coverage 1.000" in summary


async def test_the_python_client_goes_on_with_a_job_whose_orchestrator_was_killed(
    tmp_path: Path, stand_ins: Backends, sandbox: str
) -> None:
    gate = asyncio.Event()
    answer = stand_ins.policy.reply

    async def waits(request: object) -> str:
        await gate.wait()
        return str(answer(request))  # type: ignore[arg-type]

    stand_ins.policy.reply = waits
    async with child(tmp_path / "world", stand_ins, sandbox) as first:
        running = asyncio.create_task(
            ran(sys.executable, EXAMPLES / "eval_client.py", first.target, problems(tmp_path, stand_ins))
        )
        async with asyncio.timeout(60):
            while not stand_ins.policy.requests:
                await asyncio.sleep(0.02)
        first.kill()
        gate.set()
        async with child(tmp_path / "world", stand_ins, sandbox, listen=first.target):
            said = await running
    assert len(said.splitlines()) == 5
    assert "success 0.500" in said


class Slow(evaluation_pb2_grpc.EvaluationServicer):
    """A stand-in with a job on which nothing moves while it is watched for the first time."""

    def __init__(self) -> None:
        self.watches = 0

    async def CreateEvalJob(self, request: Any, context: Any) -> evaluation_pb2.EvalJob:
        return evaluation_pb2.EvalJob(job_id="slow", state=evaluation_pb2.EVAL_STATE_RUNNING)

    async def WatchEvalJob(self, request: Any, context: Any) -> AsyncIterator[evaluation_pb2.EvalEvent]:
        self.watches += 1
        if self.watches == 1:
            await asyncio.sleep(3600)
        done = evaluation_pb2.EvalJob(job_id="slow", state=evaluation_pb2.EVAL_STATE_SUCCEEDED)
        yield evaluation_pb2.EvalEvent(event_id=1, job=done)


async def test_the_python_client_watches_on_where_the_server_ends_a_watch_as_idle(tmp_path: Path) -> None:
    slow, file = Slow(), tmp_path / "problems.jsonl"
    file.write_text(lines(math_task("easy")))
    running = await start(
        ServiceSettings(),
        lambda server: evaluation_pb2_grpc.add_EvaluationServicer_to_server(slow, server),  # type: ignore[arg-type]
        ["troupe.v1.Evaluation"],
        limits=CallLimits(idle=0.3),
    )
    try:
        assert "slow: success" in await ran(sys.executable, EXAMPLES / "eval_client.py", running.target, file)
    finally:
        await running.drain(0)
    assert slow.watches == 2


@pytest.mark.skipif(shutil.which("grpcurl") is None, reason="grpcurl is not on the PATH: `make checkers` installs it")
async def test_grpcurl_creates_and_watches_a_job_by_reflection(
    tmp_path: Path, stand_ins: Backends, sandbox: str
) -> None:
    async with child(tmp_path / "world", stand_ins, sandbox) as served:
        said = await ran("sh", EXAMPLES / "grpcurl.sh", served.target, problems(tmp_path, stand_ins))
        (job,) = await listed(served)
    assert said.count('"problem_id": "easy"') == 2
    assert '"state": "EVAL_STATE_SUCCEEDED"' in said
    assert job.summary.success == 0.5


async def listed(served: Child) -> list[evaluation_pb2.EvalJob]:
    return list((await served.evaluation.ListEvalJobs(evaluation_pb2.ListEvalJobsRequest())).jobs)
