"""A run without a checkpoint begins at its learner's model folder: again only where that has the same weights."""

import pytest
from orchestrated.world import Backends, World, math_task
from troupe.v1 import training_pb2

pytestmark = pytest.mark.asyncio(loop_scope="session")

TASKS = [math_task(f"task-{number}") for number in range(4)]
PAUSED, SUCCEEDED = training_pb2.RUN_STATE_PAUSED, training_pb2.RUN_STATE_SUCCEEDED
OTHERS = "o" * 64


async def paused_after_a_step(world: World, **config: object) -> int:
    """A run that was paused at a step boundary; how many steps it has committed."""
    text = world.config(TASKS, steps=4, **config)
    await world.training.CreateRun(training_pb2.CreateRunRequest(run_id="run", config=text))
    async for event in world.training.WatchRun(training_pb2.WatchRunRequest(run_id="run"), timeout=60):
        if event.HasField("step_committed"):
            break
    await world.training.PauseRun(training_pb2.PauseRunRequest(run_id="run"))
    run = await world.get_run()
    assert (run.state, run.provenance.policies[0].weights_digest) == (PAUSED, "w" * 64)
    return run.committed_steps


async def resumed(world: World) -> training_pb2.Run:
    """The run after it was resumed and has ended or stopped."""
    newest = (await world.get_run()).recent_events[-1].event_id
    await world.training.ResumeRun(training_pb2.ResumeRunRequest(run_id="run"))
    await world.run_events(after=newest)
    return await world.get_run()


async def test_a_run_without_a_checkpoint_is_not_replayed_on_other_weights(open_world, stand_ins: Backends) -> None:
    learner = stand_ins.learner
    async with open_world(learner=True) as world:
        steps = await paused_after_a_step(world, checkpoint={"every": 100})
        learner.lose()
        learner.weights_digest = OTHERS
        trained = len(learner.optimizations)
        run = await resumed(world)
        assert (run.state, run.committed_steps, len(learner.optimizations)) == (PAUSED, steps, trained)
        for part in ("OtherWeights", "w" * 12, OTHERS[:12], "no model", "start the learner on the model files"):
            assert part in run.reason
        assert learner.run_id == ""
        learner.weights_digest = "w" * 64
        run = await resumed(world)
        assert (run.state, run.committed_steps) == (SUCCEEDED, 4)


async def test_a_run_with_a_checkpoint_goes_on_from_there_on_other_weights(open_world, stand_ins: Backends) -> None:
    async with open_world(learner=True) as world:
        await paused_after_a_step(world, checkpoint={"every": 1})
        stand_ins.learner.lose()
        stand_ins.learner.weights_digest = OTHERS
        assert (await resumed(world)).state == SUCCEEDED


async def test_a_fork_of_a_runs_start_needs_the_weights_of_that_start(open_world, stand_ins: Backends) -> None:
    learner = stand_ins.learner
    async with open_world(learner=True) as world:
        await world.run(world.config(TASKS, steps=2))
        learner.weights_digest = OTHERS
        fork = training_pb2.ForkRunRequest(parent_run_id="run", step=0, run_id="fork")
        await world.training.ForkRun(fork)
        await world.run_events("fork")
        run = await world.get_run("fork")
        assert run.state == PAUSED
        assert "run run began with initial weights of SHA-256 wwwwwwwwwwww" in run.reason
        assert learner.run_id == "run"
