"""A learner that is restarted at the worst moment, and checkpoints that are gone: the run goes on with its own weights or
says why it cannot. Never with others.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio
from orchestrated.world import Backends, World, backends, math_task
from troupe.v1 import training_pb2

pytestmark = pytest.mark.asyncio(loop_scope="session")

TASKS = [math_task(f"task-{number}") for number in range(5)]
Fork = training_pb2.ForkRunRequest
BOTH = [{"train": "both", "steps": 6}]
# Steps 1 and 2 train the executor, 3 and 4 the designer.
STAGES = [{"train": "executor", "steps": 2}, {"train": "designer", "steps": 2}]


@pytest_asyncio.fixture(loop_scope="session")
async def designers() -> AsyncIterator[Backends]:
    """The designer's own engine and learner."""
    async with backends("drafting") as parts:
        yield parts


@pytest.fixture
def open_both(open_world, designers: Backends):  # type: ignore[no-untyped-def]
    return lambda **given: open_world(
        learner=True, designer=designers.target, designer_learner=designers.target, **given
    )


async def parent(world: World, **given: object) -> None:
    settings = {"steps": 4, "stages": STAGES, "checkpoint": {"every": 1, "keep": 10}} | given
    await world.run(world.config(TASKS, **settings), "parent")
    run = await world.get_run("parent")
    assert run.state == training_pb2.RUN_STATE_SUCCEEDED, run.reason


async def ended(world: World, run_id: str, after: int = 0) -> training_pb2.Run:
    await world.run_events(run_id, after=after)
    return await world.get_run(run_id)


def once(parts: Backends, moment: str, of_run: str) -> Callable[[str], None]:
    """Restarts a learner at the first such moment at which it is a run's; `lost` then says what it had."""
    lost: list[int] = []

    def at(now: str) -> None:
        if now == moment and not lost and parts.learner.run_id.startswith(of_run):
            lost.append(len(parts.learner.weights))
            parts.learner.lose()

    at.lost = lost  # type: ignore[attr-defined]
    return at


async def test_a_learner_restarted_before_a_forks_first_batch_trains_it_from_where_the_fork_begins(
    open_world, stand_ins: Backends
) -> None:
    learner = stand_ins.learner
    async with open_world(learner=True) as world:
        await parent(world, steps=3, stages=BOTH)
        parents = learner.weights
        stand_ins.on_call = once(stand_ins, "before SubmitBatch", "fork")
        await world.training.ForkRun(Fork(parent_run_id="parent", step=2, run_id="fork", config="steps: 4"))
        run = await ended(world, "fork")
        assert stand_ins.on_call.lost == [2]  # type: ignore[attr-defined]
    assert run.state == training_pb2.RUN_STATE_SUCCEEDED, run.reason
    assert learner.weights == (*parents[:2], *(each.digest for each in learner.applied))
    assert len(learner.applied) == 2


async def test_a_policy_that_a_fork_never_trains_comes_back_to_what_the_fork_began_with(
    open_both, stand_ins: Backends, designers: Backends
) -> None:
    async with open_both() as world:
        await parent(world)
        designs = designers.learner.weights
        assert len(designs) == 2
        config = "steps: 8\nstages: [{train: executor, steps: 6}]\ncheckpoint: {every: 1, keep: 1}"
        await world.training.ForkRun(Fork(parent_run_id="parent", step=4, run_id="fork", config=config))
        async for event in world.training.WatchRun(training_pb2.WatchRunRequest(run_id="fork"), timeout=60):
            if event.HasField("step_committed") and event.step == 6:
                break
        await world.training.PauseRun(training_pb2.PauseRunRequest(run_id="fork"))
        paused = await world.get_run("fork")
        assert paused.checkpoints[-1].step == 4, "what it began with stays"
        assert paused.forkable_steps.startswith("4")
    designers.learner.lose()
    async with open_both() as world:
        await world.training.ResumeRun(training_pb2.ResumeRunRequest(run_id="fork"))
        run = await ended(world, "fork", paused.recent_events[-1].event_id)
    assert run.state == training_pb2.RUN_STATE_SUCCEEDED, run.reason
    assert designers.learner.weights == designs
    assert designers.policy.weights.version == designers.learner.version


async def test_a_checkpoint_holds_the_weights_of_its_step_whoever_is_restarted_while_it_is_saved(
    open_both, stand_ins: Backends, designers: Backends
) -> None:
    async with open_both() as world:
        await parent(world)
        executes = stand_ins.learner.weights
        # The executor's learner, when that of the designer, which this fork trains, has begun.
        designers.on_call = lambda now: at(now) if designers.learner.applied else None
        at = once(stand_ins, "after SaveCheckpoint", "fork")
        config = "steps: 6\nstages: [{train: designer, steps: 6}]"
        await world.training.ForkRun(Fork(parent_run_id="parent", step=4, run_id="fork", config=config))
        run = await ended(world, "fork")
        assert at.lost == [2]  # type: ignore[attr-defined]
    assert run.state == training_pb2.RUN_STATE_SUCCEEDED, run.reason
    for checkpoint in run.checkpoints:
        assert stand_ins.learner.saved_weights[checkpoint.uris["scripted"]] == executes


async def test_what_a_fork_begins_with_is_its_parents_step_whoever_is_restarted_before_it_is_saved(
    open_world, stand_ins: Backends
) -> None:
    learner = stand_ins.learner
    async with open_world(learner=True) as world:
        await parent(world, steps=3, stages=BOTH, checkpoint={"every": 10}, retention={"batches": "all"})
        parents = learner.weights
        stand_ins.on_call = once(stand_ins, "before SaveCheckpoint", "base-")
        await world.training.ForkRun(Fork(parent_run_id="parent", step=2, run_id="fork", config="steps: 4"))
        run = await ended(world, "fork")
        assert stand_ins.on_call.lost == [2]  # type: ignore[attr-defined]
    assert run.state == training_pb2.RUN_STATE_SUCCEEDED, run.reason
    (base,) = [each for each in run.checkpoints if each.step == 2]
    assert learner.saved_weights[base.uris["scripted"]] == parents[:2]


async def until_paused(world: World, step: int) -> training_pb2.Run:
    config = world.config(TASKS, steps=6, stages=BOTH, checkpoint={"every": 1, "keep": 3})
    await world.training.CreateRun(training_pb2.CreateRunRequest(run_id="run", config=config))
    async for event in world.training.WatchRun(training_pb2.WatchRunRequest(run_id="run"), timeout=60):
        if event.HasField("step_committed") and event.step == step:
            break
    await world.training.PauseRun(training_pb2.PauseRunRequest(run_id="run"))
    return await world.get_run()


async def test_a_checkpoint_that_cannot_be_read_gives_way_to_the_one_before_it(open_world, stand_ins: Backends) -> None:
    learner = stand_ins.learner
    async with open_world(learner=True) as world:
        paused = await until_paused(world, 4)
        newest = max(paused.checkpoints, key=lambda each: each.step)
        before, uri = learner.weights, newest.uris["scripted"]
        del learner.checkpoints[uri]
        learner.lose()
        await world.training.ResumeRun(training_pb2.ResumeRunRequest(run_id="run"))
        events = await world.run_events(after=paused.recent_events[-1].event_id)
        run = await world.get_run()
    assert run.state == training_pb2.RUN_STATE_SUCCEEDED, run.reason
    told = [event.condition for event in events if event.HasField("condition")]
    assert [each.reason for each in told] == ["CheckpointUnreadable"]
    assert uri in told[0].message
    assert learner.weights[: len(before)] == before
    assert len(learner.weights) == 6


async def test_where_no_checkpoint_can_be_read_the_run_waits_for_one_and_is_not_begun_anew(
    open_world, stand_ins: Backends
) -> None:
    learner = stand_ins.learner
    async with open_world(learner=True) as world:
        paused = await until_paused(world, 4)
        kept, before = dict(learner.checkpoints), learner.weights
        learner.checkpoints.clear()
        learner.lose()
        await world.training.ResumeRun(training_pb2.ResumeRunRequest(run_id="run"))
        run = await ended(world, "run", paused.recent_events[-1].event_id)
        assert run.state == training_pb2.RUN_STATE_PAUSED
        assert "CheckpointUnreadable" in run.reason
        assert "troupe runs show" in run.reason
        assert learner.run_id == ""
        learner.checkpoints |= kept
        await world.training.ResumeRun(training_pb2.ResumeRunRequest(run_id="run"))
        run = await ended(world, "run", run.recent_events[-1].event_id)
    assert run.state == training_pb2.RUN_STATE_SUCCEEDED, run.reason
    assert learner.weights[: len(before)] == before
