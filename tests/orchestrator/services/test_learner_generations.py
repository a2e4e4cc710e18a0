"""A learner that starts its ranks again while a run goes on: the run's events say so."""

import pytest
from orchestrated.world import Backends, math_task
from troupe.v1 import training_pb2

pytestmark = pytest.mark.asyncio(loop_scope="session")

TASKS = [math_task(f"task-{number}") for number in range(4)]


async def test_a_new_generation_of_ranks_is_a_condition_of_the_run_and_pauses_nothing(
    open_world, stand_ins: Backends
) -> None:
    async with open_world(learner=True) as world:
        config = world.config(TASKS, steps=60, stages=[{"train": "both", "steps": 1}])
        await world.training.CreateRun(training_pb2.CreateRunRequest(run_id="run", config=config))
        message, committed_after = "", 0
        async for event in world.training.WatchRun(training_pb2.WatchRunRequest(run_id="run"), timeout=60):
            if event.HasField("step_committed"):
                stand_ins.learner.generation, stand_ins.learner.detail = 2, "rank 0 ended: killed"
                committed_after += bool(message)
            if event.condition.reason == "LearnerGeneration":
                message = event.condition.message
            if committed_after:
                break
        assert "formed generation 2 of its ranks, after 1: rank 0 ended: killed" in message
        await world.training.CancelRun(training_pb2.CancelRunRequest(run_id="run"))
