"""Forks of runs whose designer and executor have weights of their own: each comes back to its own step, and to no other."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from orchestrated.world import Backends, World, backends, math_task
from troupe.v1 import learner_pb2, training_pb2

pytestmark = pytest.mark.asyncio(loop_scope="session")

TASKS = [math_task(f"task-{number}") for number in range(5)]
Fork = training_pb2.ForkRunRequest
# Steps 1, 2 and 5 train the executor, 3 and 4 the designer.
STAGES = [{"train": "executor", "steps": 2}, {"train": "designer", "steps": 2}]


@pytest_asyncio.fixture(loop_scope="session")
async def designers() -> AsyncIterator[Backends]:
    """The designer's own engine and learner."""
    async with backends("drafting") as parts:
        yield parts


@pytest.fixture
def open_both(open_world, designers: Backends):  # type: ignore[no-untyped-def]
    return lambda: open_world(learner=True, designer=designers.target, designer_learner=designers.target)


async def parent(world: World, every: int) -> None:
    checkpoint = {"every": every, "keep": 10}
    await world.run(world.config(TASKS, steps=5, stages=STAGES, checkpoint=checkpoint), "parent")
    run = await world.get_run("parent")
    assert run.state == training_pb2.RUN_STATE_SUCCEEDED, run.reason


async def forked(world: World, step: int, run_id: str) -> training_pb2.Run:
    await world.training.ForkRun(Fork(parent_run_id="parent", step=step, run_id=run_id))
    await world.run_events(run_id)
    run = await world.get_run(run_id)
    assert run.state == training_pb2.RUN_STATE_SUCCEEDED, run.reason
    return run


def content(sequence: learner_pb2.Sequence) -> tuple[object, ...]:
    """Without the id, which names the run."""
    return (tuple(sequence.token_ids), tuple(sequence.weights), tuple(sequence.advantages))


def applied(parts: Backends) -> list[list[tuple[object, ...]]]:
    learner = parts.learner
    return [[content(each) for each in learner.batches[step.digest]] for step in learner.applied]


# Of every second step: that of step 3 is made from the checkpoint of step 2 and one update of the designer.
@pytest.mark.parametrize(
    ("every", "step"),
    [(1, 1), (2, 3), *(pytest.param(*each, marks=pytest.mark.long) for each in ((1, 0), (1, 3), (2, 0), (2, 4)))],
)
async def test_both_policies_go_on_from_the_parents_step_and_train_what_it_went_on_to_train(
    every: int, step: int, open_both, stand_ins: Backends, designers: Backends
) -> None:
    updates = {0: (0, 0), 1: (1, 0), 3: (2, 1), 4: (2, 2)}[step]
    async with open_both() as world:
        await parent(world, every)
        before = [applied(parts) for parts in (stand_ins, designers)]
        assert [len(each) for each in before] == [3, 2]
        digests = [[each.digest for each in parts.learner.applied] for parts in (stand_ins, designers)]
        run = await forked(world, step, "fork")
        assert (run.committed_steps, run.forkable_steps) == (5, f"{step}-5")
        base = run.checkpoints[-1]
        assert (base.step, sorted(base.uris)) == (step, ["drafting", "scripted"])
        for parts, policy, count, trained, known in zip(
            (stand_ins, designers), ("scripted", "drafting"), updates, before, digests, strict=True
        ):
            # The weights of the fork are those that the parent's updates up to the step made, and no others.
            replayed = parts.learner.checkpoints[base.uris[policy]]
            ours = [each.digest for each in replayed.steps]
            assert ours == known[count - len(ours) : count]
            assert applied(parts) == trained[count:]
            assert parts.learner.run_id == "fork"
            assert parts.policy.weights.version == parts.learner.version


async def test_a_fork_of_two_policies_is_forked_again(open_both, stand_ins: Backends, designers: Backends) -> None:
    async with open_both() as world:
        await parent(world, 2)
        whole = [applied(parts) for parts in (stand_ins, designers)]
        await forked(world, 2, "one")
        await world.training.ForkRun(Fork(parent_run_id="one", step=3, run_id="two"))
        await world.run_events("two")
        run = await world.get_run("two")
        assert run.state == training_pb2.RUN_STATE_SUCCEEDED, run.reason
        assert [applied(parts) for parts in (stand_ins, designers)] == [whole[0][2:], whole[1][1:]]
        resets = [[sent.reset_optimizer for sent in parts.learner.optimizations] for parts in (stand_ins, designers)]
        assert resets[1][-1] is False, "step 4 goes on with the designer's stage"
