"""Runs on an orchestrator that trains other policies than they began with: left as they are, with what to set."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from orchestrated.world import Backends, World, backends, math_task, refused
from troupe.v1 import training_pb2

pytestmark = pytest.mark.asyncio(loop_scope="session")

TASKS = [math_task(f"task-{number}") for number in range(5)]
Resume = training_pb2.ResumeRunRequest
Fork = training_pb2.ForkRunRequest
ONE, TWO = "policy 'scripted' (designer, executor)", "policies 'drafting' (designer), 'scripted' (executor)"
TO_ONE = "start it with TROUPE_LEARNER at the learner of 'scripted' and without TROUPE_DESIGNER_LEARNER"
TO_TWO = "TROUPE_LEARNER at the learner of 'scripted' and TROUPE_DESIGNER_LEARNER at the learner of 'drafting'"


@pytest_asyncio.fixture(loop_scope="session")
async def designers() -> AsyncIterator[Backends]:
    """The designer's own engine and learner."""
    async with backends("drafting") as parts:
        yield parts


@pytest.fixture
def open_of(open_world, designers: Backends):  # type: ignore[no-untyped-def]
    """Opens an orchestrator of one policy or of two."""
    own = {"designer": designers.target, "designer_learner": designers.target}
    return lambda policies: open_world(learner=True, **(own if policies == 2 else {}))


async def begun(world: World, pause: bool) -> None:
    """A run of four steps that has committed its first, perhaps paused after it."""
    config = world.config(TASKS, steps=4, checkpoint={"every": 1})
    await world.training.CreateRun(training_pb2.CreateRunRequest(run_id="run", config=config))
    async for event in world.training.WatchRun(training_pb2.WatchRunRequest(run_id="run"), timeout=60):
        if event.HasField("step_committed"):
            break
    if pause:
        await world.training.PauseRun(training_pb2.PauseRunRequest(run_id="run"))


async def goes_on(world: World) -> None:
    await world.training.ResumeRun(Resume(run_id="run"))
    await world.run_events()
    run = await world.get_run()
    assert (run.state, run.committed_steps) == (training_pb2.RUN_STATE_SUCCEEDED, 4), run.reason


@pytest.mark.parametrize(
    ("policies", "others", "said"),
    [(1, 2, (ONE, f"this orchestrator has {TWO}", TO_ONE)), (2, 1, (TWO, f"this orchestrator has {ONE}", TO_TWO))],
)
async def test_a_paused_run_is_neither_resumed_nor_forked_on_other_policies_and_goes_on_on_its_own(
    open_of, policies: int, others: int, said: tuple[str, ...]
) -> None:
    async with open_of(policies) as world:
        await begun(world, pause=True)
    async with open_of(others) as world:
        with refused("FAILED_PRECONDITION", "run: trains ", *said):
            await world.training.ResumeRun(Resume(run_id="run"))
        with refused("FAILED_PRECONDITION", "run: trains ", *said):
            await world.training.ForkRun(Fork(parent_run_id="run", step=1, run_id="fork"))
        assert (await world.get_run()).state == training_pb2.RUN_STATE_PAUSED
        assert [run.run_id for run in (await world.training.ListRuns(training_pb2.ListRunsRequest())).runs] == ["run"]
    async with open_of(policies) as world:
        await goes_on(world)


async def test_an_interrupted_run_is_paused_where_the_policies_are_others_at_the_start(open_of) -> None:
    async with open_of(1) as world:
        await begun(world, pause=False)
    async with open_of(2) as world:
        run = await world.get_run()
        assert run.state == training_pb2.RUN_STATE_PAUSED
        for said in (ONE, TWO, TO_ONE, "resume the run"):
            assert said in run.reason
        assert (await world.run_events())[-1].state_changed.reason == run.reason
    async with open_of(1) as world:
        await goes_on(world)
