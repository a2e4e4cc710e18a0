"""Eval jobs of an orchestrator that is killed: no stored item is run again, none is lost, no event is told twice."""

import asyncio
import random
from collections import Counter
from pathlib import Path

import grpc
import pytest
from orchestrated.child import Child, child
from orchestrated.models import RIGHT, SINGLE
from orchestrated.world import Backends, eval_request, math_task
from troupe.v1 import evaluation_pb2, policy_pb2
from troupe_orchestrator.tree import node_id

pytestmark = [pytest.mark.long, pytest.mark.asyncio(loop_scope="session")]

ROWS = [math_task(f"task-{number}") for number in range(6)]
SAMPLES = 2
ITEMS = {(str(row["id"]), sample) for row in ROWS for sample in range(SAMPLES)}
REQUEST = eval_request(*ROWS, samples=SAMPLES, job_id="job")


class Permits:
    """Lets so many agents answer."""

    def __init__(self, count: int) -> None:
        self._free = asyncio.Semaphore(count)

    async def __call__(self, request: policy_pb2.GenerateRequest) -> str:
        await self._free.acquire()
        return RIGHT


async def stored(orchestrator: Child) -> dict[tuple[str, int], evaluation_pb2.EvalItem]:
    page = await orchestrator.evaluation.ListEvalItems(evaluation_pb2.ListEvalItemsRequest(job_id="job"))
    return {(item.problem_id, item.sample): item for item in page.items}


def design_ids(backends: Backends) -> list[str]:
    """Every design that was asked for, in order."""
    return [design_id for request in backends.designer.requests for design_id in request.design_ids]


def design_of(problem_id: str, sample: int) -> str:
    return node_id("job", sample, problem_id, "design/0", 0)


class Watcher:
    """Watches the job and remembers all it was told, over connections that break."""

    def __init__(self) -> None:
        self.events: list[evaluation_pb2.EvalEvent] = []

    async def watch(self, orchestrator: Child) -> bool:
        """Until the job has ended, or the connection has."""
        after = self.events[-1].event_id if self.events else 0
        request = evaluation_pb2.WatchEvalJobRequest(job_id="job", after_event_id=after)
        try:
            async for event in orchestrator.evaluation.WatchEvalJob(request):
                self.events.append(event)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False
        return True

    def check(self) -> None:
        """Every event once, in order; every item in one of them."""
        assert [event.event_id for event in self.events] == list(range(1, len(self.events) + 1))
        assert Counter((item.problem_id, item.sample) for event in self.events for item in event.items) == Counter(
            ITEMS
        )


async def finished(orchestrator: Child) -> evaluation_pb2.EvalJob:
    watcher = Watcher()
    assert await watcher.watch(orchestrator)
    watcher.check()
    return await orchestrator.evaluation.GetEvalJob(evaluation_pb2.GetEvalJobRequest(job_id="job"))


@pytest.mark.parametrize("before", [0, 1, 5, 11])
async def test_a_job_whose_orchestrator_is_killed_runs_exactly_the_items_that_are_missing(
    tmp_path: Path, stand_ins: Backends, sandbox: str, before: int
) -> None:
    stand_ins.designer.otherwise = [SINGLE]
    stand_ins.policy.reply = Permits(before)
    watcher = Watcher()
    async with child(tmp_path, stand_ins, sandbox) as first:
        await first.evaluation.CreateEvalJob(REQUEST)
        watching = asyncio.create_task(watcher.watch(first))
        async with asyncio.timeout(30):
            while len(done := await stored(first)) < before or not stand_ins.designer.requests:
                await asyncio.sleep(0.02)
        first.kill()
        assert not await watching
    assert len(done) == before
    stand_ins.designer.requests.clear()
    stand_ins.policy.reply = Permits(1000)
    async with child(tmp_path, stand_ins, sandbox) as second:
        assert await watcher.watch(second)
        job = await finished(second)
        after = await stored(second)
    watcher.check()
    assert (job.state, job.items_done, job.items_faulted) == (evaluation_pb2.EVAL_STATE_SUCCEEDED, len(ITEMS), 0)
    assert (job.summary.success, job.summary.coverage) == (1.0, 1.0)
    assert sorted(design_ids(stand_ins)) == sorted(design_of(*item) for item in ITEMS - done.keys())
    assert {key: after[key] for key in done} == done


async def test_a_job_that_is_killed_again_and_again_at_any_moment_ends_with_each_item_once(
    tmp_path: Path, stand_ins: Backends, sandbox: str
) -> None:
    chance = random.Random(7)
    stand_ins.designer.otherwise = [SINGLE]

    async def slowly(request: policy_pb2.GenerateRequest) -> str:
        await asyncio.sleep(chance.uniform(0.0, 1.0))
        return RIGHT

    stand_ins.policy.reply = slowly
    watcher = Watcher()
    known: dict[tuple[str, int], evaluation_pb2.EvalItem] = {}
    for kill in range(6):
        stand_ins.designer.requests.clear()
        async with child(tmp_path, stand_ins, sandbox) as orchestrator:
            if kill == 0:
                await orchestrator.evaluation.CreateEvalJob(REQUEST)
            else:
                # What was stored when this process began: read before anything else could be.
                assert known.items() <= (await stored(orchestrator)).items()
            watching = asyncio.create_task(watcher.watch(orchestrator))
            await asyncio.wait([watching], timeout=chance.uniform(0.0, 0.6))
            orchestrator.kill()
            await watching
        assert not {design_of(*item) for item in known} & set(design_ids(stand_ins))
        known = {(item.problem_id, item.sample): item for event in watcher.events for item in event.items}
    async with child(tmp_path, stand_ins, sandbox) as last:
        assert await watcher.watch(last)
        job = await finished(last)
        assert (await stored(last)).keys() == ITEMS
    watcher.check()
    assert (job.state, job.items_done, job.summary.coverage) == (evaluation_pb2.EVAL_STATE_SUCCEEDED, len(ITEMS), 1.0)
