"""Forks over the public API: where they start, what they go on with, what is refused."""

import pytest
import yaml
from orchestrated.world import Backends, World, math_task, refused
from troupe.v1 import learner_pb2, training_pb2
from troupe_learner.ledger import Ledger

pytestmark = pytest.mark.asyncio(loop_scope="session")

TASKS = [math_task(f"task-{number}") for number in range(5)]
Create = training_pb2.CreateRunRequest
Fork = training_pb2.ForkRunRequest
STAGES = [{"train": "executor", "steps": 2}, {"train": "designer", "steps": 1}]


async def parent(world: World, **changes: object) -> None:
    """A run of four steps, which has ended; a checkpoint is kept of each."""
    checkpoint = {"every": 1, "keep": 10}
    await world.run(world.config(TASKS, **{"steps": 4, "stages": STAGES, "checkpoint": checkpoint} | changes), "parent")
    assert (await world.get_run("parent")).state == training_pb2.RUN_STATE_SUCCEEDED


async def forked(world: World, step: int, run_id: str = "fork", **changes: object) -> training_pb2.Run:
    """A fork of it, which has ended."""
    overrides = yaml.safe_dump(changes) if changes else ""
    await world.training.ForkRun(Fork(parent_run_id="parent", step=step, config=overrides, run_id=run_id))
    await world.run_events(run_id)
    return await world.get_run(run_id)


def trained_on(world: World, digests: list[bytes]) -> list[list[tuple[object, ...]]]:
    """What each of these batches trains, without the ids, which name the run."""
    return [[content(each) for each in world.backends.learner.batches[digest]] for digest in digests]


def content(sequence: learner_pb2.Sequence) -> tuple[object, ...]:
    return (
        tuple(sequence.token_ids),
        tuple(sequence.weights),
        tuple(sequence.advantages),
        tuple(sequence.behaviour_log_probs),
    )


async def test_a_fork_with_the_same_plan_trains_what_its_parent_went_on_to_train_from_the_same_weights(
    open_world, stand_ins: Backends
) -> None:
    async with open_world(learner=True) as world:
        await parent(world)
        before = [step.digest for step in stand_ins.learner.applied]
        run = await forked(world, 2)
        assert run.state == training_pb2.RUN_STATE_SUCCEEDED, run.reason
        assert (run.committed_steps, run.total_steps) == (4, 4)
        assert (run.provenance.fork.parent_run_id, run.provenance.fork.step) == ("parent", 2)
        assert run.provenance.fork.tasks_continued
        assert run.provenance.fork.plan_continued
        base = run.checkpoints[-1]
        assert base.step == 2
        # The weights: those of the parent after the very batches of its first two steps, kept in the fork's own folder.
        (_, source), (run_id, used) = stand_ins.learner.bases[-2:]
        assert [step.digest for step in stand_ins.learner.checkpoints[source].steps] == before[:2]
        assert (run_id, used) == ("fork", base.uris["scripted"])
        assert used.startswith(run.folder)
        # The tasks, the plan and the samples: those of the parent's third and fourth step, in the same order.
        after = [step.digest for step in stand_ins.learner.applied]
        resets = [sent.reset_optimizer for sent in stand_ins.learner.optimizations]
        assert resets == [False, False, True, True, True, True]
        assert [step.step for step in stand_ins.learner.applied] == [1, 2]
        assert trained_on(world, after) == trained_on(world, before[2:])
        assert after != before[2:]


async def test_a_fork_in_the_middle_of_a_stage_keeps_the_moments_of_that_stage(open_world, stand_ins: Backends) -> None:
    async with open_world(learner=True) as world:
        await parent(world)
        # Steps 4 and 5 are one stage of the executor, after one of the designer.
        await forked(world, 4, "one", steps=5)
        assert not stand_ins.learner.optimizations[-1].reset_optimizer
        await forked(world, 3, "two", steps=5)
        assert [sent.reset_optimizer for sent in stand_ins.learner.optimizations[-2:]] == [True, False]


async def test_a_fork_starts_from_the_newest_checkpoint_before_its_step_and_replays_only_what_came_after(
    open_world, stand_ins: Backends
) -> None:
    async with open_world(learner=True) as world:
        await parent(world, checkpoint={"every": 2, "keep": 5})
        await forked(world, 3)
        scratch, source = stand_ins.learner.bases[-2]
        assert scratch.startswith("base-")
        assert source.endswith("step-000002-scripted-1")
        base = (await world.get_run("fork")).checkpoints[-1].uris["scripted"]
        assert len(stand_ins.learner.checkpoints[base].steps) == 1


async def test_a_fork_in_the_middle_of_a_stage_measures_the_drift_of_the_other_role_from_the_begin_of_that_stage(
    open_world,
) -> None:
    async with open_world(learner=True) as world:
        await parent(world)
        for run_id, step in (("one", 1), ("two", 2)):
            await world.training.ForkRun(Fork(parent_run_id="parent", step=step, run_id=run_id))
            events = await world.run_events(run_id)
            drifts = {
                event.step: sorted(name for name in event.step_committed.metrics if name.startswith("drift_"))
                for event in events
                if event.HasField("step_committed")
            }
            expected = {2: ["drift_designer"], 3: ["drift_executor"], 4: ["drift_designer"]}
            assert drifts == {number: names for number, names in expected.items() if number > step}


async def test_a_fork_of_a_paused_run_without_a_checkpoint_replays_from_its_start(
    open_world, stand_ins: Backends
) -> None:
    async with open_world(learner=True) as world:
        config = world.config(TASKS, steps=50, stages=STAGES, checkpoint={"every": 100})
        await world.training.CreateRun(Create(run_id="parent", config=config))
        async for event in world.training.WatchRun(training_pb2.WatchRunRequest(run_id="parent"), timeout=60):
            if event.HasField("step_committed") and event.step == 2:
                break
        await world.training.PauseRun(training_pb2.PauseRunRequest(run_id="parent"))
        before = [step.digest for step in stand_ins.learner.applied]
        run = await forked(world, 2, steps=3)
        assert run.state == training_pb2.RUN_STATE_SUCCEEDED, run.reason
        (scratch, source), _ = stand_ins.learner.bases[-2:]
        assert (scratch[:5], source) == ("base-", "")
        replayed = stand_ins.learner.checkpoints[run.checkpoints[-1].uris["scripted"]]
        assert [step.digest for step in replayed.steps] == before[:2]
        # The parent, whose learner the fork took, goes on from where it stood.
        await world.training.ResumeRun(training_pb2.ResumeRunRequest(run_id="parent"))
        await world.training.PauseRun(training_pb2.PauseRunRequest(run_id="parent"))
        digests = [step.digest for step in stand_ins.learner.applied]
        assert digests[: len(before)] == before[: len(digests)]


async def test_a_fork_with_stages_of_its_own_begins_them_with_its_first_step(open_world) -> None:
    async with open_world(learner=True) as world:
        await parent(world)
        await world.training.ForkRun(
            Fork(parent_run_id="parent", step=2, run_id="fork", config="stages: [{train: designer, steps: 9}]")
        )
        events = await world.run_events("fork")
        committed = [(each.step, each.step_committed) for each in events if each.HasField("step_committed")]
        assert [(step, told.stage, told.trains) for step, told in committed] == [(3, 1, "designer"), (4, 1, "designer")]
        assert not (await world.get_run("fork")).provenance.fork.plan_continued


async def test_a_fork_with_another_seed_starts_the_tasks_anew_and_says_so(open_world) -> None:
    async with open_world(learner=True) as world:
        await parent(world)
        run = await forked(world, 2, seed=7)
        assert not run.provenance.fork.tasks_continued
        assert run.provenance.fork.tasks_reason == "seed is 7, the parent's 0"


async def test_a_fork_of_a_fork_and_one_at_the_start_are_forks(open_world, stand_ins: Backends) -> None:
    async with open_world(learner=True) as world:
        await parent(world)
        whole = trained_on(world, [step.digest for step in stand_ins.learner.applied])
        await forked(world, 0, "again")
        assert trained_on(world, [step.digest for step in stand_ins.learner.applied]) == whole
        await forked(world, 1, "one")
        await world.training.ForkRun(Fork(parent_run_id="one", step=3, run_id="two"))
        await world.run_events("two")
        assert trained_on(world, [step.digest for step in stand_ins.learner.applied]) == whole[3:]
        assert (await world.get_run("one")).forkable_steps == "1-4"
        with refused("FAILED_PRECONDITION", "one", "began after step 1", "1-4"):
            await world.training.ForkRun(Fork(parent_run_id="one", step=0, run_id="three"))


async def test_a_fork_needs_nothing_of_its_parent_once_it_has_begun(open_world, stand_ins: Backends) -> None:
    async with open_world(learner=True) as world:
        await parent(world)
        await world.training.ForkRun(
            Fork(parent_run_id="parent", step=2, run_id="fork", config="{steps: 40, checkpoint: {every: 100}}")
        )
        async for event in world.training.WatchRun(training_pb2.WatchRunRequest(run_id="fork"), timeout=60):
            if event.HasField("step_committed") and event.step == 4:
                break
    expected = [step.digest for step in stand_ins.learner.applied]
    # The learner comes back with nothing, and the parent's checkpoints are gone.
    stand_ins.learner.ledger = Ledger("", "restarted")
    for uri in [uri for uri in stand_ins.learner.checkpoints if "/parent/" in uri]:
        del stand_ins.learner.checkpoints[uri]
    async with open_world(learner=True) as world:
        await world.training.PauseRun(training_pb2.PauseRunRequest(run_id="fork"))
        assert [step.digest for step in stand_ins.learner.applied][: len(expected)] == expected


async def test_steps_that_cannot_be_forked_are_refused_with_those_that_can(open_world) -> None:
    async with open_world(learner=True) as world:
        await parent(world)
        fork = world.training.ForkRun
        with refused("NOT_FOUND", "nobody"):
            await fork(Fork(parent_run_id="nobody", step=1))
        with refused("INVALID_ARGUMENT", field="parent_run_id"):
            await fork(Fork(step=1))
        with refused("INVALID_ARGUMENT", "needs more", field="config.steps"):
            await fork(Fork(parent_run_id="parent", step=4))
        with refused("FAILED_PRECONDITION", "has committed 4 steps", "0-4"):
            await fork(Fork(parent_run_id="parent", step=9, config="steps: 12"))
        with refused("INVALID_ARGUMENT", "unknown key", field="config.rollout.desings"):
            await fork(Fork(parent_run_id="parent", step=1, config="rollout: {desings: 3}"))
        with refused("INVALID_ARGUMENT", "mapping"):
            await fork(Fork(parent_run_id="parent", step=1, config="[1]"))
        with refused("FAILED_PRECONDITION", "parent", "another config"):
            await fork(Fork(parent_run_id="parent", step=1, run_id="parent"))
        one = await fork(Fork(parent_run_id="parent", step=2, run_id="one"))
        again = await fork(Fork(parent_run_id="parent", step=2, run_id="one"))
        assert one.create_time == again.create_time
        with refused("FAILED_PRECONDITION", "one", "another config"):
            await fork(Fork(parent_run_id="parent", step=1, run_id="one"))
        await world.run_events("one")
