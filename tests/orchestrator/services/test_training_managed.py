"""Runs as a user manages them: queued, shown, planned, paused by conditions, resumed with what has changed."""

import asyncio
import math
import sqlite3

import pytest
from orchestrated.models import SINGLE, right_unless_guessed
from orchestrated.world import Backends, World, lines, math_task, refused, world
from troupe.v1 import policy_pb2, training_pb2
from troupe_orchestrator.run_config import parse_run_config
from troupe_orchestrator.stages import plan_step
from troupe_orchestrator.store.database import Database, StoreUnavailableError
from troupe_orchestrator.store.outages import Outage
from troupe_orchestrator.store.runs import RunRecord, RunState, create_run
from troupe_orchestrator.training import run_loop, weights
from troupe_orchestrator.training.plan import step_bounds
from troupe_orchestrator.training.run_records import RunRecords
from troupe_orchestrator.training.validation import Validated, Validation

pytestmark = pytest.mark.asyncio(loop_scope="session")

TASKS = [math_task(f"task-{number}") for number in range(4)]
Create = training_pb2.CreateRunRequest
PAUSED, QUEUED, RUNNING = (training_pb2.RunState.Value(f"RUN_STATE_{name}") for name in ("PAUSED", "QUEUED", "RUNNING"))
SUCCEEDED, CANCELLED = (training_pb2.RunState.Value(f"RUN_STATE_{name}") for name in ("SUCCEEDED", "CANCELLED"))
LONG = {"steps": 60, "stages": [{"train": "both", "steps": 1}]}


async def committed(world: World, run_id: str, step: int) -> None:
    """Returns once the run has committed that step."""
    async for event in world.training.WatchRun(training_pb2.WatchRunRequest(run_id=run_id), timeout=60):
        if event.HasField("step_committed") and event.step >= step:
            return


async def state(world: World, run_id: str, wanted: "training_pb2.RunState.ValueType") -> training_pb2.Run:
    """The run, once it is in that state."""
    async with asyncio.timeout(30):
        while (run := await world.get_run(run_id)).state != wanted:
            await asyncio.sleep(0.02)
    return run


def told(events: list[training_pb2.RunEvent]) -> dict[str, str]:
    return {event.condition.reason: event.condition.message for event in events if event.HasField("condition")}


async def test_a_queued_run_starts_when_the_holder_ends_and_in_the_order_of_creation(open_world) -> None:
    async with open_world(learner=True) as world:
        create = world.training.CreateRun
        await create(Create(run_id="one", config=world.config(TASKS, **LONG)))
        with refused("FAILED_PRECONDITION", "one", "queue"):
            await create(Create(run_id="two", config=world.config(TASKS)))
        for name in ("two", "three"):
            run = await create(Create(run_id=name, config=world.config(TASKS, steps=1), queue=True))
            assert (run.state, run.reason) == (QUEUED, "waits for run one, which trains these policies")
        watching = asyncio.create_task(world.run_events("two"))
        with refused("FAILED_PRECONDITION", "queued"):
            await world.training.PauseRun(training_pb2.PauseRunRequest(run_id="two"))
        await world.training.CancelRun(training_pb2.CancelRunRequest(run_id="one"))
        two, three = await state(world, "two", SUCCEEDED), await state(world, "three", SUCCEEDED)
        assert two.end_time.ToNanoseconds() < three.end_time.ToNanoseconds()
        # Who watched it while it was queued saw it run.
        kinds = [event.WhichOneof("event") for event in await watching]
        assert kinds == ["state_changed", "step_committed", "state_changed"]


async def test_a_queued_run_starts_when_the_holder_pauses_and_can_be_cancelled_before(open_world) -> None:
    async with open_world(learner=True) as world:
        create = world.training.CreateRun
        await create(Create(run_id="one", config=world.config(TASKS, **LONG)))
        await create(Create(run_id="two", config=world.config(TASKS, steps=1), queue=True))
        await create(Create(run_id="three", config=world.config(TASKS, steps=1), queue=True))
        run = await world.training.CancelRun(training_pb2.CancelRunRequest(run_id="two"))
        assert run.state == CANCELLED
        await world.training.PauseRun(training_pb2.PauseRunRequest(run_id="one"))
        assert (await state(world, "three", SUCCEEDED)).committed_steps == 1
        assert (await world.get_run("two")).committed_steps == 0


async def test_a_queue_survives_a_restart(open_world) -> None:
    async with open_world(learner=True) as world:
        await world.training.CreateRun(Create(run_id="one", config=world.config(TASKS, **LONG)))
        await world.training.CreateRun(Create(run_id="two", config=world.config(TASKS, steps=1), queue=True))
    async with open_world(learner=True) as world:
        assert (await world.get_run("two")).state == QUEUED
        await world.training.CancelRun(training_pb2.CancelRunRequest(run_id="one"))
        await state(world, "two", SUCCEEDED)


async def test_of_two_runs_that_are_on_record_as_running_the_older_one_runs_and_the_other_waits(open_world) -> None:
    async with open_world(learner=True) as world:
        await world.training.CreateRun(Create(run_id="one", config=world.config(TASKS, **LONG)))
        await world.training.CreateRun(Create(run_id="two", config=world.config(TASKS, steps=1), queue=True))
    with sqlite3.connect(world.folder / "data" / "troupe.db") as connection:
        connection.execute("update runs set state = 'running'")
    async with open_world(learner=True) as world:
        assert [(await world.get_run(name)).state for name in ("one", "two")] == [RUNNING, QUEUED]
        await world.training.CancelRun(training_pb2.CancelRunRequest(run_id="one"))
        await state(world, "two", SUCCEEDED)


async def test_a_run_that_no_engine_took_weights_for_is_resumed_once_they_do(open_world, monkeypatch) -> None:
    async def refuses(*_: object) -> str:
        return "out of memory"

    async with open_world(learner=True) as world:
        with monkeypatch.context() as patched:
            patched.setattr(weights, "_bring_up", refuses)
            events = await world.run(world.config(TASKS))
        assert events[-1].state_changed.state == PAUSED
        assert "out of memory" in told(events)["WeightSyncFailed"]
        await world.training.ResumeRun(training_pb2.ResumeRunRequest(run_id="run"))
        events = await world.run_events(after=events[-1].event_id)
        # What the engines have to be is known, though none serves.
        assert "ProvenanceUnknown" not in told(events)
        assert events[-1].state_changed.state == SUCCEEDED


async def test_a_run_that_is_cancelled_while_its_end_waits_for_the_store_is_cancelled(open_world, monkeypatch) -> None:
    tried = asyncio.Event()

    async def refuses(*_: object) -> str:
        return "out of memory"

    async def away(*_: object) -> None:
        tried.set()
        raise StoreUnavailableError("sqlite", Outage("is locked", "wait"), RuntimeError("locked"))

    monkeypatch.setattr(weights, "_bring_up", refuses)
    async with open_world(learner=True) as world:
        with monkeypatch.context() as patched:
            patched.setattr("troupe_orchestrator.training.run_records.set_run_state", away)
            await world.training.CreateRun(Create(run_id="run", config=world.config(TASKS)))
            await asyncio.wait_for(tried.wait(), 30)
            cancelling = asyncio.ensure_future(world.training.CancelRun(training_pb2.CancelRunRequest(run_id="run")))
            await asyncio.sleep(0.3)
        assert (await cancelling).state == CANCELLED


async def test_a_queued_run_whose_services_are_away_runs_and_waits_for_them(open_world, stand_ins: Backends) -> None:
    async with open_world(learner=True) as world:
        await world.training.CreateRun(Create(run_id="one", config=world.config(TASKS, **LONG)))
        await world.training.CreateRun(Create(run_id="two", config=world.config(TASKS, steps=1), queue=True))
        await stand_ins.stop()
        await world.training.CancelRun(training_pb2.CancelRunRequest(run_id="one"))
        await state(world, "two", RUNNING)
        request = training_pb2.WatchRunRequest(run_id="two")
        reasons = []
        async for event in world.training.WatchRun(request, timeout=30):
            reasons += [event.condition.reason] * event.HasField("condition")
            if reasons:
                break
        assert reasons == ["ProvenanceUnknown"]
        run = await world.training.CancelRun(training_pb2.CancelRunRequest(run_id="two"))
        assert run.state == CANCELLED


async def test_a_run_is_not_created_while_its_services_are_away(open_world, stand_ins: Backends) -> None:
    async with open_world(learner=True) as world:
        await stand_ins.stop()
        with refused("UNAVAILABLE", "its learner", "troupe status"):
            await world.training.CreateRun(Create(run_id="one", config=world.config(TASKS, steps=1)))


async def test_who_opens_the_events_of_a_run_at_once_gets_the_same(tmp_path) -> None:
    database = await Database.open(f"sqlite:///{tmp_path}/troupe.db", 30.0)
    record = RunRecord("run", RunState.QUEUED, "", "", 1, str(tmp_path), 1.0, None)
    await create_run(database, record, {})
    runs = RunRecords(database)
    # A connection for each, so that neither waits for one.
    await asyncio.gather(runs.get("run"), runs.get("run"))
    first, second = await asyncio.gather(runs.events("run"), runs.events("run"))
    assert first is second
    await database.close()


async def test_a_run_records_what_it_came_from(open_world, stand_ins: Backends) -> None:
    async with open_world(learner=True) as world:
        await world.run(world.config(TASKS, steps=2, seed=5, dataset={"train": str(world.folder / "train.jsonl")}))
        run = await world.get_run()
        provenance = run.provenance
        assert (provenance.seed, provenance.data_tasks, len(provenance.data_digest)) == (5, 4, 64)
        assert (len(provenance.lock_digest), len(provenance.config_digest)) == (64, 64)
        assert provenance.isolation_profile == "full"
        (policy,) = provenance.policies
        assert (policy.policy_id, list(policy.roles)) == ("scripted", ["designer", "executor"])
        assert (policy.tokenizer_digest, policy.architecture_digest) == ("t" * 64, "a" * 64)
        assert not provenance.HasField("fork")
        assert run.last_metrics["success"] == pytest.approx(0.5)
        assert run.last_metrics["zero_variance"] == 0.0
        assert [saved.step for saved in run.checkpoints] == [2]
        assert run.forkable_steps == "0, 2"
        assert run.recent_events[-1].state_changed.state == SUCCEEDED
        (listed,) = (await world.training.ListRuns(training_pb2.ListRunsRequest())).runs
        assert listed.provenance == provenance
        assert not listed.last_metrics


async def test_a_run_whose_data_changed_is_not_resumed_and_other_changes_are_told(
    open_world, stand_ins: Backends
) -> None:
    async with open_world(learner=True) as world:
        await world.training.CreateRun(Create(run_id="run", config=world.config(TASKS, **LONG)))
        await committed(world, "run", 1)
        await world.training.PauseRun(training_pb2.PauseRunRequest(run_id="run"))
        file = world.folder / "train.jsonl"
        content = file.read_text()
        file.write_text(content.replace("6 * 7", "7 * 6"))
        resume = training_pb2.ResumeRunRequest(run_id="run")
        with refused("FAILED_PRECONDITION", "run", "train.jsonl", "SHA-256", "fork"):
            await world.training.ResumeRun(resume)
        assert (await world.get_run()).state == PAUSED
        file.write_text(content)
        for digests in (stand_ins.learner, stand_ins.policy.weights):
            digests.tokenizer_digest = "u" * 64
        await world.training.ResumeRun(resume)
        run = await world.training.PauseRun(training_pb2.PauseRunRequest(run_id="run"))
        changed = told(list((await world.get_run()).recent_events))["ProvenanceChanged"]
        assert "scripted.tokenizer_digest: tttttttttttt → uuuuuuuuuuuu" in changed
        assert run.provenance.policies[0].tokenizer_digest == "t" * 64


async def test_a_run_whose_data_changed_while_nothing_ran_is_paused_at_the_start(open_world) -> None:
    async with open_world(learner=True) as world:
        await world.training.CreateRun(Create(run_id="run", config=world.config(TASKS, **LONG)))
        await committed(world, "run", 1)
    (world.folder / "train.jsonl").write_text((world.folder / "train.jsonl").read_text() + "\n")
    async with open_world(learner=True) as world:
        run = await world.get_run()
        assert run.state == PAUSED
        assert "SHA-256" in run.reason


async def test_a_condition_pauses_the_run_after_the_step_and_a_resume_acknowledges_it(
    open_world, stand_ins: Backends
) -> None:
    stand_ins.designer.otherwise = [SINGLE]  # every design is right: no group has variance
    conditions = {"window": 2, "zero_variance_above": 0.5, "repeat_after": 3}
    async with open_world(learner=True) as world:
        events = await world.run(world.config(TASKS, **LONG, conditions=conditions))
        run = await world.get_run()
        assert (run.state, run.committed_steps) == (PAUSED, 2)
        assert "NoVariance" in run.reason
        assert "is 1, above 0.5" in run.reason
        assert "conditions.zero_variance_above" in run.reason
        assert [event.WhichOneof("event") for event in events[-3:]] == ["step_committed", "condition", "state_changed"]
        await world.training.ResumeRun(training_pb2.ResumeRunRequest(run_id="run"))
        await world.run_events()
        assert (await world.get_run()).committed_steps == 5
    async with open_world(learner=True) as world:
        assert (await world.get_run()).state == PAUSED


async def test_what_a_resume_acknowledged_stays_so_when_the_orchestrator_is_restarted_before_the_next_step(
    open_world, stand_ins: Backends
) -> None:
    stand_ins.designer.otherwise = [SINGLE]
    conditions = {"window": 2, "zero_variance_above": 0.5, "repeat_after": 3}
    async with open_world(learner=True) as world:
        await world.run(world.config(TASKS, **LONG, conditions=conditions))
        assert ((await world.get_run()).state, (await world.get_run()).committed_steps) == (PAUSED, 2)
        asked = asyncio.Event()

        async def never(request: policy_pb2.GenerateRequest) -> str:
            asked.set()
            await asyncio.Event().wait()
            return ""

        stand_ins.policy.reply = never
        await world.training.ResumeRun(training_pb2.ResumeRunRequest(run_id="run"))
        await asyncio.wait_for(asked.wait(), 20)
    stand_ins.policy.reply = right_unless_guessed
    async with open_world(learner=True) as world:
        await world.run_events()
        assert (await world.get_run()).committed_steps == 5


async def test_a_run_goes_on_after_a_restart_however_many_newer_ones_there_are(open_world) -> None:
    async with open_world(learner=True) as world:
        await world.training.CreateRun(Create(run_id="run", config=world.config(TASKS, **LONG)))
        await committed(world, "run", 1)
    with sqlite3.connect(world.folder / "data" / "troupe.db") as connection:
        columns = [row[1] for row in connection.execute("pragma table_info(runs)") if row[1] not in ("run_id", "state")]
        kept = ", ".join(columns)
        for number in range(1001):
            copied = (
                f"insert into runs (run_id, state, {kept}) select ?, 'succeeded', {kept} from runs where run_id = 'run'"
            )
            connection.execute(copied, (f"newer-{number}",))
        connection.execute("update runs set created_at = created_at + 1 where run_id != 'run'")
    async with open_world(learner=True) as world:
        before = (await world.get_run()).committed_steps
        await committed(world, "run", before + 1)


async def test_a_condition_that_is_off_pauses_nothing(open_world, stand_ins: Backends) -> None:
    stand_ins.designer.otherwise = [SINGLE]
    async with open_world(learner=True) as world:
        await world.run(world.config(TASKS, steps=3, conditions={"window": 1, "zero_variance_above": None}))
        assert (await world.get_run()).state == SUCCEEDED


async def test_a_gradient_that_is_not_finite_pauses_the_run_before_the_step_is_trained(
    open_world, stand_ins: Backends
) -> None:
    stand_ins.learner.gradients_are_finite = False
    async with open_world(learner=True) as world:
        await world.run(world.config(TASKS))
        run = await world.get_run()
        assert (run.state, run.committed_steps) == (PAUSED, 0)
        assert "NonFiniteGradient" in run.reason
        assert "fork" in run.reason
        assert len(stand_ins.learner.optimizations) == 1
        assert "nan" in told(list(run.recent_events))["NonFiniteGradient"]


async def test_a_metric_of_any_part_of_a_step_that_is_not_finite_pauses_the_run_after_it(
    open_world, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def validated(self: Validation, step: int) -> Validated:
        return Validated({"validation_success": math.nan, "validation_coverage": 1.0}, ())

    monkeypatch.setattr(run_loop, "drift", lambda held, log_probs: math.inf)
    monkeypatch.setattr(Validation, "after", validated)
    async with open_world(learner=True) as world:
        held = world.folder / "held.jsonl"
        held.write_text(lines(math_task("held")))
        config = world.config(
            TASKS,
            stages=[{"train": "executor", "steps": 2, "until": "plateau"}],
            validation={"dataset": str(held), "every": 1},
        )
        events = await world.run(config)
        run = await world.get_run()
        assert (run.state, run.committed_steps) == (PAUSED, 1), run.reason
        assert told(events)["NonFinite"].startswith("drift_designer, validation_success of step 1 is not")
        (step,) = [event.step_committed for event in events if event.HasField("step_committed")]
        assert all(math.isfinite(value) for value in step.metrics.values())


async def test_a_plan_starts_nothing_and_bounds_what_the_run_then_takes(open_world) -> None:
    async with open_world(learner=True) as world:
        config = world.config(TASKS, steps=2, checkpoint={"every": 100})
        plan = await world.training.PlanRun(training_pb2.PlanRunRequest(config=config))
        assert not (await world.training.ListRuns(training_pb2.ListRunsRequest())).runs
        assert (plan.steps, plan.tasks) == (2, 4)
        events = await world.run(config)
        parsed = parse_run_config(config)
        for event in events:
            if event.HasField("step_committed"):
                bounds = step_bounds(parsed, plan_step(parsed, event.step), plan.tasks)
                metrics = event.step_committed.metrics
                assert metrics["designs"] <= bounds.designer_sequences
                assert metrics["executions"] <= bounds.executor_sequences
                assert metrics["generated_tokens"] <= bounds.designer_tokens + bounds.executor_tokens
        for batch in world.backends.learner.batches.values():
            assert len(batch) <= plan.stages[0].trained_sequences
        for call, fields in (
            (world.training.PlanRun, {}),
            (world.training.PlanRun, {"config": "stepz: 1"}),
        ):
            with refused("INVALID_ARGUMENT", "config"):
                await call(training_pb2.PlanRunRequest(**fields))
        policy = training_pb2.PolicyDescription(policy_id="p", roles=["executor"])
        with refused("INVALID_ARGUMENT", field="policies"):
            await world.training.PlanRun(training_pb2.PlanRunRequest(config=config, policies=[policy]))


async def test_an_orchestrator_without_services_plans_with_given_policies(open_world, tmp_path) -> None:
    async with open_world(learner=True) as opened:
        config = opened.config(TASKS)
    async with world(tmp_path, None) as records:
        policy = training_pb2.PolicyDescription(
            policy_id="p", roles=["designer", "executor"], parameters=1000, weight_bytes=4000, context_length=512
        )
        request = training_pb2.PlanRunRequest(config=config, policies=[policy])
        names = [estimate.name for estimate in (await records.training.PlanRun(request)).estimates]
        assert "one checkpoint of policy p" in names
        assert "sealed batches of one step" in names


async def test_the_moments_are_reset_by_the_first_update_of_a_stage_also_where_its_first_step_has_none(
    open_world, stand_ins: Backends
) -> None:
    stages = [{"train": "executor", "steps": 1}, {"train": "designer", "steps": 3}]
    two_tasks = [math_task("alike"), math_task("unlike")]
    # Drawn one by one: a step with this task alone has no variance, and so no batch.
    stand_ins.designer.scripts[str(two_tasks[0]["question"])] = [SINGLE]
    async with open_world(learner=True) as world:
        rollout = {"tasks_per_step": 1, "designs": 2, "executions": 1}
        events = await world.run(world.config(two_tasks, steps=4, stages=stages, rollout=rollout, seed=1))
        digests = [event.step_committed.digest for event in events if event.HasField("step_committed")]
    # The designer's stage begins with the task that gives no batch.
    assert [bool(digest) for digest in digests] == [True, False, False, True]
    assert [sent.reset_optimizer for sent in stand_ins.learner.optimizations] == [False, True]
