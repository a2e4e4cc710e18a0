"""An orchestrator that goes down while a job has the policies between two steps of a run: the job ends with its version."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from orchestrated.models import question_of, right_unless_guessed
from orchestrated.world import Backends, World, eval_request, math_task
from troupe.v1 import common_pb2, evaluation_pb2, policy_pb2, training_pb2
from troupe_orchestrator.evaluation.job_records import JobRecords

pytestmark = pytest.mark.asyncio(loop_scope="session")

TASKS = [math_task(f"task-{number}") for number in range(4)]
HELD = [math_task("held-0"), math_task("held-1")]


async def going_down_between_two_steps(world: World) -> None:
    """Returns once one of two items of a job is stored, which has the policies."""
    config = world.config(TASKS, steps=6, stages=[{"train": "both", "steps": 1}])
    await world.training.CreateRun(training_pb2.CreateRunRequest(run_id="run", config=config))
    async for event in world.training.WatchRun(training_pb2.WatchRunRequest(run_id="run"), timeout=60):
        if event.HasField("step_committed"):
            break
    await world.evaluation.CreateEvalJob(eval_request(*HELD, job_id="between"))
    request = evaluation_pb2.WatchEvalJobRequest(job_id="between")
    async for told in world.evaluation.WatchEvalJob(request, timeout=60):
        if told.items:
            break


async def test_it_goes_on_before_the_runs_next_step(
    open_world, stand_ins: Backends, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = asyncio.Event()

    async def reply(request: policy_pb2.GenerateRequest) -> str:
        if "(held-1)" in question_of(request):
            await gate.wait()
        return right_unless_guessed(request)

    stand_ins.policy.reply = reply
    async with open_world(learner=True) as world:
        await going_down_between_two_steps(world)
    opened = JobRecords.open

    async def slowly(*arguments: Any) -> Any:
        await asyncio.sleep(0.5)  # in which a run takes more than a step
        return await opened(*arguments)

    monkeypatch.setattr(JobRecords, "open", slowly)
    gate.set()
    async with open_world(learner=True) as world:
        await world.watched("between")
        job = await world.evaluation.GetEvalJob(evaluation_pb2.GetEvalJobRequest(job_id="between"))
        assert job.state == evaluation_pb2.EVAL_STATE_SUCCEEDED, job.reason
        items = await world.items("between")
        assert sorted(item.problem_id for item in items) == ["held-0", "held-1"]
        (number,) = {item.executor_version.number for item in items}
        assert number > 0
        await world.run_events()
        assert (await world.get_run()).state == training_pb2.RUN_STATE_SUCCEEDED


async def test_a_job_that_has_no_item_yet_goes_on_with_whatever_is_served(open_world, stand_ins: Backends) -> None:
    async def never(request: policy_pb2.GenerateRequest) -> str:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async with open_world() as world:
        stand_ins.policy.reply = never
        await world.evaluation.CreateEvalJob(eval_request(*HELD, job_id="job"))
        async with asyncio.timeout(20):
            while not stand_ins.policy.requests:
                await asyncio.sleep(0.01)
    stand_ins.policy.weights.version.CopyFrom(common_pb2.PolicyVersion(lineage="other", number=0))
    stand_ins.policy.reply = right_unless_guessed
    async with open_world() as world:
        events = await world.watched("job")
        assert events[-1].job.state == evaluation_pb2.EVAL_STATE_SUCCEEDED, events[-1].job.reason
        assert {item.executor_version.lineage for item in await world.items("job")} == {"other"}
