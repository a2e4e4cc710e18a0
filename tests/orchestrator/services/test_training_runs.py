"""Runs over the public API, with a learner that keeps its contract: steps, faults of ours, stopping, resuming."""

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from orchestrated.models import RIGHT, WRONG, question_of, right_unless_guessed
from orchestrated.world import Backends, World, eval_request, math_task, refused
from troupe.v1 import evaluation_pb2, policy_pb2, training_pb2
from troupe_contracts.errors import Unavailable
from troupe_learner.ledger import Ledger
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.trees import read_trees
from troupe_orchestrator.training.events import EventLog
from troupe_orchestrator.tree import NodeKind

pytestmark = pytest.mark.asyncio(loop_scope="session")

TASKS = [math_task(f"task-{number}") for number in range(4)]
Create = training_pb2.CreateRunRequest


class Gate:
    """Holds agents back until it is opened; says how many wait."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.waiting = 0

    async def __call__(self, request: policy_pb2.GenerateRequest) -> str:
        self.waiting += 1
        await self.open.wait()
        return right_unless_guessed(request)

    async def reached(self, count: int = 1) -> None:
        async with asyncio.timeout(20):
            while self.waiting < count:
                await asyncio.sleep(0.01)


def kinds(events: list[training_pb2.RunEvent]) -> list[str]:
    return [str(event.WhichOneof("event")) for event in events]


def conditions(events: list[training_pb2.RunEvent]) -> list[tuple[int, str, str]]:
    return [
        (event.step, event.condition.reason, event.condition.message)
        for event in events
        if event.WhichOneof("event") == "condition"
    ]


def drawn(folder: Path) -> dict[int, str]:
    """Task ids by step, as the store has them."""
    with sqlite3.connect(folder / "data" / "troupe.db") as connection:
        return dict(connection.execute("select step, task_ids from steps order by step"))


async def test_a_run_commits_each_step_once_and_a_watch_goes_on_after_an_event(open_world) -> None:
    async with open_world(learner=True) as world:
        events = await world.run(world.config(TASKS))
        assert kinds(events) == ["step_committed", "step_committed", "state_changed"]
        assert [event.event_id for event in events] == [1, 2, 3]
        run = await world.get_run()
        assert (run.state, run.committed_steps, run.total_steps) == (training_pb2.RUN_STATE_SUCCEEDED, 2, 2)
        committed = events[1].step_committed
        learner = world.backends.learner
        assert (committed.digest, committed.version.number) == (learner.applied[1].digest, 2)
        assert world.backends.policy.weights.committed == [1, 2]
        assert committed.metrics["success"] == pytest.approx(0.5)
        assert await world.run_events(after=1) == events[1:]
        assert await world.run_events(after=2**64 - 1) == []
        assert len(learner.checkpoints) == 1


async def test_a_look_at_the_learner_carries_only_what_it_has_applied_since_the_last_one(
    open_world, stand_ins: Backends
) -> None:
    async with open_world(learner=True) as world:
        await world.run(world.config(TASKS, steps=6, stages=[{"train": "both", "steps": 1}]))
        assert (await world.get_run()).state == training_pb2.RUN_STATE_SUCCEEDED
    assert len(stand_ins.learner.applied) == 6
    assert max(stand_ins.learner.told) <= 2


async def test_the_drift_of_the_role_that_is_not_trained_is_reported_each_step(open_world) -> None:
    async with open_world(learner=True) as world:
        stages = [{"train": "executor", "steps": 2}]
        events = await world.run(world.config(TASKS, stages=stages))
        assert [event.step_committed.metrics["drift_designer"] for event in events[:2]] == [0.0, 0.0]


async def test_a_stage_that_begins_without_one_conversation_of_the_other_role_goes_on_without_its_drift(
    open_world, stand_ins: Backends
) -> None:
    stand_ins.designer.otherwise = ["def ("]
    async with open_world(learner=True) as world:
        events = await world.run(world.config(TASKS, stages=[{"train": "designer", "steps": 2}]))
        assert kinds(events) == ["step_committed", "step_committed", "state_changed"]
        assert [name for name in events[0].step_committed.metrics if name.startswith("drift_")] == []
        assert (await world.get_run()).state == training_pb2.RUN_STATE_SUCCEEDED


async def test_events_that_are_appended_side_by_side_have_numbers_of_their_own(tmp_path: Path) -> None:
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path}/troupe.db", 15.0)
    try:
        log = await EventLog.open(database, "run")
        told = [training_pb2.Condition(reason="TaskDropped", message=str(number)) for number in range(4)]
        await asyncio.gather(*(log.append(1, condition) for condition in told))
        await log.end()
        events = [event async for event in log.watch(0)]
    finally:
        await database.close()
    assert [event.event_id for event in events] == [1, 2, 3, 4]
    assert sorted(event.condition.message for event in events) == ["0", "1", "2", "3"]


async def test_what_is_trained_on_are_the_sampled_tokens_with_their_log_probabilities(open_world) -> None:
    async with open_world(learner=True) as world:
        await world.run(world.config(TASKS, steps=1, stages=[{"train": "executor", "steps": 1}]))
        (batch,) = world.backends.learner.batches.values()
        assert batch
        for sequence in batch:
            trained = [token for token, weight in zip(sequence.token_ids, sequence.weights, strict=True) if weight]
            assert bytes(trained).decode() in (RIGHT, WRONG)
            assert {p for p, w in zip(sequence.behaviour_log_probs, sequence.weights, strict=True) if w} == {-0.5}


async def test_tasks_whose_executor_always_fails_are_dropped_whole_and_drawn_again_at_the_epochs_end(
    open_world, stand_ins: Backends
) -> None:
    def reply(request: policy_pb2.GenerateRequest) -> str:
        if "(bad-" in question_of(request):
            raise Unavailable("gone")
        return right_unless_guessed(request)

    stand_ins.policy.reply = reply
    tasks = [*TASKS[:2], math_task("bad-1"), math_task("bad-2")]
    async with open_world(learner=True) as world:
        rollout = {"tasks_per_step": 4, "designs": 2, "executions": 1, "max_attempts": 2, "quarantine_after": 2}
        events = await world.run(world.config(tasks, rollout=rollout, steps=3, stages=[{"train": "both", "steps": 3}]))
        run = await world.get_run()
        assert run.state == training_pb2.RUN_STATE_SUCCEEDED, run.reason
        told = [
            (step, reason, message.split(":")[0])
            for step, reason, message in conditions(events)
            if reason != "InfrastructureFault"
        ]
        assert sorted(told) == [
            (step, reason, f"task bad-{number}")
            for step, reason in ((1, "TaskDropped"), (2, "TaskQuarantined"))
            for number in (1, 2)
        ]
        committed = [event.step_committed.metrics for event in events if event.HasField("step_committed")]
        assert [metrics["tasks_dropped"] for metrics in committed] == [2, 2, 0]
        assert [metrics["executions"] for metrics in committed] == [4, 4, 4]
        steps = drawn(world.folder)
        assert all("bad-1" in steps[step] and "bad-2" in steps[step] for step in (1, 2))
        assert "bad" not in steps[3]
        for sequences in world.backends.learner.batches.values():
            assert not any(b"(bad-" in bytes(sequence.token_ids) for sequence in sequences)


async def test_a_step_of_which_every_task_is_dropped_pauses_the_run_and_can_be_resumed(
    open_world, stand_ins: Backends
) -> None:
    def down(request: policy_pb2.GenerateRequest) -> str:
        raise Unavailable("gone")

    stand_ins.policy.reply = down
    async with open_world(learner=True) as world:
        await world.run(world.config(TASKS, steps=1))
        run = await world.get_run()
        assert run.state == training_pb2.RUN_STATE_PAUSED
        assert "gone" in run.reason
        assert "resume" in run.reason
        assert world.backends.learner.applied == []
        stand_ins.policy.reply = right_unless_guessed
        await world.training.ResumeRun(training_pb2.ResumeRunRequest(run_id="run"))
        await world.run_events()
        assert (await world.get_run()).state == training_pb2.RUN_STATE_SUCCEEDED
        assert len(world.backends.learner.applied) == 1


async def test_a_pause_takes_hold_at_the_step_boundary_and_the_run_goes_on_from_there(
    open_world, stand_ins: Backends
) -> None:
    stand_ins.policy.reply = gate = Gate()
    async with open_world(learner=True) as world:
        await world.training.CreateRun(Create(run_id="run", config=world.config(TASKS)))
        await gate.reached()
        pausing = asyncio.ensure_future(world.training.PauseRun(training_pb2.PauseRunRequest(run_id="run")))
        await asyncio.sleep(0.1)
        assert not pausing.done()
        gate.open.set()
        run = await pausing
        assert (run.state, run.committed_steps) == (training_pb2.RUN_STATE_PAUSED, 1)
        again = await world.training.ResumeRun(training_pb2.ResumeRunRequest(run_id="run"))
        assert again.state == training_pb2.RUN_STATE_RUNNING
        events = await world.run_events()
        assert kinds(events) == ["step_committed", *["state_changed"] * 2, "step_committed", "state_changed"]
        assert [applied.step for applied in world.backends.learner.applied] == [1, 2]


async def test_a_client_that_gives_up_on_a_pause_does_not_cut_the_step_short(open_world, stand_ins: Backends) -> None:
    stand_ins.policy.reply = gate = Gate()
    async with open_world(learner=True) as world:
        await world.training.CreateRun(Create(run_id="run", config=world.config(TASKS)))
        await gate.reached()
        with refused("DEADLINE_EXCEEDED"):
            await world.training.PauseRun(training_pb2.PauseRunRequest(run_id="run"), timeout=0.2)
        gate.open.set()
        events = await world.run_events()
        assert kinds(events) == ["step_committed", "state_changed"]
        assert (await world.get_run()).state == training_pb2.RUN_STATE_PAUSED


async def test_a_pause_right_after_the_start_is_not_lost(open_world) -> None:
    async with open_world(learner=True) as world:
        await world.training.CreateRun(Create(run_id="run", config=world.config(TASKS)))
        run = await world.training.PauseRun(training_pb2.PauseRunRequest(run_id="run"))
        assert run.state == training_pb2.RUN_STATE_PAUSED
        assert run.committed_steps < 2


async def test_a_cancelled_run_ends_in_mid_step_and_keeps_what_is_committed(open_world, stand_ins: Backends) -> None:
    async with open_world(learner=True) as world:
        stand_ins.policy.reply = gate = Gate()
        await world.training.CreateRun(Create(run_id="run", config=world.config(TASKS)))
        await gate.reached()
        watching = asyncio.create_task(world.run_events())
        run = await world.training.CancelRun(training_pb2.CancelRunRequest(run_id="run"))
        assert (run.state, run.committed_steps) == (training_pb2.RUN_STATE_CANCELLED, 0)
        assert kinds(await watching) == ["state_changed"]
        assert await world.training.CancelRun(training_pb2.CancelRunRequest(run_id="run")) == run


async def test_a_run_takes_the_learner_of_one_that_has_ended_and_begins_at_its_own_first_update(
    open_world, stand_ins: Backends
) -> None:
    async with open_world(learner=True) as world:
        for run_id in ("first", "second"):
            await world.training.CreateRun(Create(run_id=run_id, config=world.config(TASKS, steps=2)))
            await world.run_events(run_id=run_id)
            assert (await world.get_run(run_id)).state == training_pb2.RUN_STATE_SUCCEEDED
            assert (stand_ins.learner.run_id, [each.step for each in stand_ins.learner.applied]) == (run_id, [1, 2])
    assert stand_ins.learner.bases == [("first", ""), ("second", "")]
    assert stand_ins.policy.weights.version == stand_ins.learner.version


async def test_a_paused_run_whose_learner_another_run_took_gets_it_back_by_replay(
    open_world, stand_ins: Backends
) -> None:
    stand_ins.policy.reply = gate = Gate()
    async with open_world(learner=True) as world:
        await world.training.CreateRun(Create(run_id="first", config=world.config(TASKS, steps=2)))
        await gate.reached()
        pausing = world.training.PauseRun(training_pb2.PauseRunRequest(run_id="first"))
        await asyncio.sleep(0.2)
        gate.open.set()
        assert (await pausing).committed_steps == 1
        trained = [each.digest for each in stand_ins.learner.applied]
        await world.training.CreateRun(Create(run_id="second", config=world.config(TASKS, steps=1)))
        await world.run_events(run_id="second")
        assert stand_ins.learner.run_id == "second"
        await world.training.ResumeRun(training_pb2.ResumeRunRequest(run_id="first"))
        await world.run_events(run_id="first")
        assert (await world.get_run("first")).state == training_pb2.RUN_STATE_SUCCEEDED
    assert stand_ins.learner.run_id == "first"
    assert [each.digest for each in stand_ins.learner.applied][:1] == trained
    assert [each.step for each in stand_ins.learner.applied] == [1, 2]


async def test_an_eval_job_during_a_run_waits_for_a_step_boundary_and_has_one_version(
    open_world, stand_ins: Backends
) -> None:
    stand_ins.policy.reply = gate = Gate()
    async with open_world(learner=True) as world:
        await world.training.CreateRun(Create(run_id="run", config=world.config(TASKS)))
        await gate.reached()
        job = await world.evaluation.CreateEvalJob(eval_request(*TASKS, samples=2, job_id="between"))
        await asyncio.sleep(0.2)
        job = await world.evaluation.GetEvalJob(evaluation_pb2.GetEvalJobRequest(job_id="between"))
        assert (job.state, job.items_done) == (evaluation_pb2.EVAL_STATE_RUNNING, 0)
        gate.open.set()
        await world.watched("between")
        await world.run_events()
        items = await world.items("between")
        assert len(items) == 8
        assert {(item.designer_version.number, item.executor_version.number) for item in items} == {(1, 1)}


async def test_a_run_that_waits_for_an_eval_job_is_paused_at_once(open_world, stand_ins: Backends) -> None:
    stand_ins.policy.reply = gate = Gate()
    async with open_world(learner=True) as world:
        await world.evaluation.CreateEvalJob(eval_request(*TASKS, job_id="holds"))
        await gate.reached()
        await world.training.CreateRun(Create(run_id="run", config=world.config(TASKS)))
        await asyncio.sleep(0.2)
        run = await world.training.PauseRun(training_pb2.PauseRunRequest(run_id="run"), timeout=20)
        assert (run.state, run.committed_steps) == (training_pb2.RUN_STATE_PAUSED, 0)
        await world.training.ResumeRun(training_pb2.ResumeRunRequest(run_id="run"))
        gate.open.set()
        await world.watched("holds")
        events = await world.run_events()
        assert kinds(events) == [*["state_changed"] * 2, *["step_committed"] * 2, "state_changed"]


async def interrupted(world: World, stand_ins: Backends, gate: Gate) -> None:
    """Rolls until one group is journalled and the other waits for its agents."""

    async def reply(request: policy_pb2.GenerateRequest) -> str:
        if "(task-0)" in question_of(request):
            return await gate(request)
        return right_unless_guessed(request)

    stand_ins.policy.reply = reply
    await world.training.CreateRun(Create(run_id="run", config=world.config(TASKS[:2], steps=1)))
    await gate.reached(2)
    groups = world.folder / "data" / "runs" / "run" / "steps" / "000001" / "groups"
    async with asyncio.timeout(20):
        while not list(groups.glob("*.parquet")):
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.2)


async def test_a_run_closed_in_mid_rollout_goes_on_without_repeating_journalled_groups(
    open_world, stand_ins: Backends
) -> None:
    gate = Gate()
    async with open_world(learner=True) as world:
        await interrupted(world, stand_ins, gate)
    before = [request.task_id for request in stand_ins.designer.requests]
    assert sorted(before) == ["task-0", "task-1"]
    stand_ins.policy.reply = right_unless_guessed
    async with open_world(learner=True) as world:
        events = await world.run_events()
        assert kinds(events) == ["step_committed", "state_changed"]
        assert (await world.get_run()).state == training_pb2.RUN_STATE_SUCCEEDED
        assert events[0].step_committed.metrics["executions"] == 4
    after = [request.task_id for request in stand_ins.designer.requests][len(before) :]
    assert after == ["task-0"]
    assert [applied.step for applied in stand_ins.learner.applied] == [1]


@pytest.mark.parametrize(
    "damage", [lambda file: file.write_bytes(file.read_bytes()[:-1] + b"X"), Path.unlink], ids=["changed", "gone"]
)
async def test_a_run_closed_in_mid_rollout_rolls_journalled_groups_out_again_where_a_file_was_damaged(
    open_world, stand_ins: Backends, damage: Callable[[Path], object]
) -> None:
    async with open_world(learner=True) as world:
        await interrupted(world, stand_ins, Gate())
    before = [request.task_id for request in stand_ins.designer.requests]
    (file,) = (world.folder / "data" / "runs" / "run" / "steps" / "000001" / "groups").glob("*.parquet")
    damage(file)
    stand_ins.policy.reply = right_unless_guessed
    async with open_world(learner=True) as world:
        events = await world.run_events()
        assert (await world.get_run()).state == training_pb2.RUN_STATE_SUCCEEDED
        assert events[0].step_committed.metrics["tasks_journalled"] == 0
        assert events[0].step_committed.metrics["executions"] == 4
    after = [request.task_id for request in stand_ins.designer.requests][len(before) :]
    assert sorted(after) == ["task-0", "task-1"]


async def test_a_trace_from_trees_that_are_not_those_that_were_sealed_names_file_step_and_remedy(open_world) -> None:
    async with open_world(learner=True) as world:
        await world.run(world.config(TASKS, steps=2))
        first, second = sorted((world.folder / "data" / "runs" / "run" / "steps").glob("*/trees-*.parquet"))
        (tree, *_) = read_trees(first)
        (execution, *_) = tree.of_kind(NodeKind.EXECUTION)
        get = training_pb2.GetExecutionRequest(execution_id=execution.id)
        assert (await world.training.GetExecution(get)).step == 1
        first.write_bytes(second.read_bytes())
        with refused("DATA_LOSS", "trees of step 1 of run run", str(first), "put it back"):
            await world.training.GetExecution(get)
        first.unlink()
        with refused("DATA_LOSS", "trees of step 1 of run run", str(first), "put it back"):
            await world.training.GetExecution(get)


async def test_a_run_closed_in_mid_rollout_rolls_journalled_groups_out_again_where_another_version_serves(
    open_world, stand_ins: Backends
) -> None:
    async with open_world(learner=True) as world:
        await interrupted(world, stand_ins, Gate())
    before = [request.task_id for request in stand_ins.designer.requests]
    # The learner came back meanwhile, under a lineage of its own.
    stand_ins.learner.ledger = Ledger("run", "start~9")
    stand_ins.policy.reply = right_unless_guessed
    async with open_world(learner=True) as world:
        events = await world.run_events()
        assert kinds(events) == ["step_committed", "state_changed"]
        assert events[0].step_committed.metrics["tasks_journalled"] == 0
        assert events[0].step_committed.metrics["executions"] == 4
    after = stand_ins.designer.requests[len(before) :]
    assert sorted(request.task_id for request in after) == ["task-0", "task-1"]
    assert {request.version.lineage for request in after} == {"start~9"}


async def test_a_run_whose_file_is_gone_is_paused_at_the_start_and_resumed_when_it_is_back(
    open_world, stand_ins: Backends
) -> None:
    async with open_world(learner=True) as world:
        await interrupted(world, stand_ins, Gate())
    file = world.folder / "train.jsonl"
    content = file.read_text()
    file.unlink()
    stand_ins.policy.reply = right_unless_guessed
    async with open_world(learner=True) as world:
        run = await world.get_run()
        assert run.state == training_pb2.RUN_STATE_PAUSED
        assert "train.jsonl" in run.reason
        with refused("INVALID_ARGUMENT", "train.jsonl"):
            await world.training.ResumeRun(training_pb2.ResumeRunRequest(run_id="run"))
        assert (await world.get_run()).state == training_pb2.RUN_STATE_PAUSED
        file.write_text(content)
        await world.training.ResumeRun(training_pb2.ResumeRunRequest(run_id="run"))
        await world.run_events()
        assert (await world.get_run()).state == training_pb2.RUN_STATE_SUCCEEDED


async def test_an_eval_job_closed_midway_goes_on_with_what_is_missing(open_world, stand_ins: Backends) -> None:
    gate = Gate()

    async def reply(request: policy_pb2.GenerateRequest) -> str:
        return await gate(request) if "(task-0)" in question_of(request) else right_unless_guessed(request)

    stand_ins.policy.reply = reply
    async with open_world() as world:
        await world.evaluation.CreateEvalJob(eval_request(*TASKS[:2], job_id="job"))
        async with asyncio.timeout(20):
            while not await world.items("job"):
                await asyncio.sleep(0.02)
    before = len(stand_ins.designer.requests)
    stand_ins.policy.reply = right_unless_guessed
    async with open_world() as world:
        job = (await world.watched("job"))[-1].job
        assert (job.state, job.items_done) == (evaluation_pb2.EVAL_STATE_SUCCEEDED, 2)
    assert [request.task_id for request in stand_ins.designer.requests[before:]] == ["task-0"]
