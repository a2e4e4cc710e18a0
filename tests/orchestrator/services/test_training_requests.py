"""What the Training service refuses, and by which name; records without engines."""

import asyncio
import sqlite3

import pytest
from orchestrated.models import RIGHT
from orchestrated.world import Backends, World, eval_request, lines, math_task, refused, violations, world
from storage.postgres import PostgresServer
from troupe.v1 import evaluation_pb2, policy_pb2, solver_pb2, training_pb2
from troupe_orchestrator.engines import PolicyMismatchError
from troupe_orchestrator.store.trees import read_trees
from troupe_orchestrator.tree import NodeKind

pytestmark = pytest.mark.asyncio(loop_scope="session")

TASKS = [math_task(f"task-{number}") for number in range(4)]
Create = training_pb2.CreateRunRequest


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("", "must be a mapping"),
        ("[1, 2]", "must be a mapping"),
        ("a: [1", "not YAML"),
        ("seed: 2001-99-99", "not YAML"),
        ("[" * 20_000, "nested too deeply"),
        ('{dataset: {train: "a\\0b"}, steps: 1, stages: [{train: both, steps: 1}]}', "null byte"),
        ("{dataset: {train: /nowhere/at/all.jsonl}, steps: 1, stages: [{train: both, steps: 1}]}", "No such file"),
        ("{dataset: {train: /}, steps: 1, stages: [{train: both, steps: 1}]}", "irectory"),
    ],
)
async def test_a_config_that_cannot_be_used_is_refused(open_world, config: str, said: str) -> None:
    async with open_world(learner=True) as opened:
        with refused("INVALID_ARGUMENT", "config", said):
            await opened.training.CreateRun(Create(config=config))


async def test_every_unknown_or_bad_key_of_a_config_is_named(open_world) -> None:
    async with open_world(learner=True) as opened:
        bad = opened.config(TASKS, stepz=1, rollout={"designs": 0, "desings": 2}, optimization={"momentum": 1})
        for call, request in (
            (opened.training.CreateRun, Create(config=bad)),
            (opened.training.DescribeConfig, training_pb2.DescribeConfigRequest(config=bad)),
        ):
            with pytest.raises(Exception, match="unknown key") as raised:
                await call(request)
            assert set(violations(raised.value)) == {
                "config.stepz",
                "config.rollout.designs",
                "config.rollout.desings",
                "config.optimization.momentum",
            }


async def test_every_bad_line_of_the_training_file_is_named_and_no_run_starts(open_world) -> None:
    async with open_world(learner=True) as opened:
        config = opened.config(TASKS)
        file = opened.folder / "train.jsonl"
        file.write_text(lines(TASKS[0], "{bad", TASKS[1], '{"id": "x"}'))
        with refused("INVALID_ARGUMENT", "train.jsonl:2:", "train.jsonl:4:", field="config.dataset.train"):
            await opened.training.CreateRun(Create(run_id="run", config=config))
        file.write_text("nothing\n")
        with refused("INVALID_ARGUMENT", "train.jsonl", field="config.dataset.train"):
            await opened.training.CreateRun(Create(run_id="run", config=config))
        with refused("NOT_FOUND", "run"):
            await opened.get_run()


async def test_one_run_trains_at_a_time_and_an_id_names_one_config(open_world, stand_ins: Backends) -> None:
    gate = asyncio.Event()

    async def waits(request: policy_pb2.GenerateRequest) -> str:
        await gate.wait()
        return RIGHT

    stand_ins.policy.reply = waits
    async with open_world(learner=True) as opened:
        config = opened.config(TASKS)
        first, second = await asyncio.gather(
            *(opened.training.CreateRun(Create(run_id="one", config=config)) for _ in range(2))
        )
        assert first.create_time == second.create_time
        with refused("FAILED_PRECONDITION", "one"):
            await opened.training.CreateRun(Create(run_id="two", config=config))
        again = await opened.training.CreateRun(Create(run_id="one", config=config))
        assert again.run_id == "one"
        with refused("FAILED_PRECONDITION", "one", "another config"):
            await opened.training.CreateRun(Create(run_id="one", config=opened.config(TASKS, seed=1)))
        for run_id in ("Not An Id", "line\n"):
            with refused("INVALID_ARGUMENT", field="run_id"):
                await opened.training.CreateRun(Create(run_id=run_id, config=config))
        run = await opened.training.CancelRun(training_pb2.CancelRunRequest(run_id="one"))
        assert run.state == training_pb2.RUN_STATE_CANCELLED
        with refused("FAILED_PRECONDITION", "cancelled"):
            await opened.training.ResumeRun(training_pb2.ResumeRunRequest(run_id="one"))
        with refused("FAILED_PRECONDITION", "cancelled"):
            await opened.training.PauseRun(training_pb2.PauseRunRequest(run_id="one"))


async def test_a_run_of_a_config_that_is_refused_by_now_is_still_shown(open_world) -> None:
    async with open_world(learner=True) as opened:
        await opened.run(opened.config(TASKS))
    (tree, *_) = read_trees(next((opened.folder / "data" / "runs" / "run" / "steps").glob("*/trees-*.parquet")))
    (execution, *_) = tree.of_kind(NodeKind.EXECUTION)
    with sqlite3.connect(opened.folder / "data" / "troupe.db") as store:
        store.execute("UPDATE runs SET config = replace(config, 'seed: 0', 'seed: -5')")
        assert store.execute("SELECT config LIKE '%seed: -5%' FROM runs").fetchone() == (1,)
    async with open_world() as opened:
        assert [run.run_id for run in (await opened.training.ListRuns(training_pb2.ListRunsRequest())).runs] == ["run"]
        assert (await opened.get_run()).state == training_pb2.RUN_STATE_SUCCEEDED
        trace = await opened.training.GetExecution(training_pb2.GetExecutionRequest(execution_id=execution.id))
        assert (trace.run_id, trace.HasField("executor_advantage")) == ("run", False)


async def test_a_config_that_is_too_long_with_its_defaults_starts_nothing(open_world) -> None:
    async with open_world(learner=True) as opened:
        # On record each of its characters takes six.
        long = opened.config(TASKS) + 'delivery_instruction: {math: "' + "\u4e2d" * 50_000 + '"}'
        for call, request in (
            (opened.training.CreateRun, Create(run_id="run", config=long)),
            (opened.training.PlanRun, training_pb2.PlanRunRequest(config=long)),
        ):
            with refused("INVALID_ARGUMENT", "every default", "the maximum is 262144", field="config"):
                await call(request)
        with refused("NOT_FOUND", "run"):
            await opened.get_run()


async def test_of_two_runs_created_at_once_one_is_refused(open_world) -> None:
    async with open_world(learner=True) as opened:
        config = opened.config(TASKS)
        calls = [opened.training.CreateRun(Create(run_id=name, config=config)) for name in ("one", "two")]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert sorted(type(result).__name__ for result in results) == ["AioRpcError", "Run"]
        runs = (await opened.training.ListRuns(training_pb2.ListRunsRequest())).runs
        assert len(runs) == 1


async def test_an_unknown_run_is_not_found_by_any_call(shared: World) -> None:
    training = shared.training
    for call, request in (
        (training.GetRun, training_pb2.GetRunRequest),
        (training.PauseRun, training_pb2.PauseRunRequest),
        (training.ResumeRun, training_pb2.ResumeRunRequest),
        (training.CancelRun, training_pb2.CancelRunRequest),
    ):
        with refused("NOT_FOUND", "nobody"):
            await call(request(run_id="nobody"))
        with refused("INVALID_ARGUMENT", field="run_id"):
            await call(request())
    with refused("NOT_FOUND", "nobody"):
        await shared.run_events("nobody")
    with refused("INVALID_ARGUMENT", field="page_token"):
        await training.ListRuns(training_pb2.ListRunsRequest(page_token="x"))


async def test_training_without_a_learner_is_refused_by_name(shared: World) -> None:
    with refused("FAILED_PRECONDITION", "TROUPE_LEARNER"):
        await shared.training.CreateRun(Create(config=shared.config(TASKS)))


async def test_a_config_is_described_with_the_line_of_each_given_value(shared: World) -> None:
    config = "dataset:\n  train: x.jsonl\nsteps: 3\nstages:\n- {train: both, steps: 3}\n"
    described = await shared.training.DescribeConfig(training_pb2.DescribeConfigRequest(config=config))
    entries = {entry.key: (entry.value, entry.origin) for entry in described.entries}
    assert entries["dataset.train"] == ("x.jsonl", "line 2")
    assert entries["stages.0.train"] == ("both", "line 5")
    assert entries["rollout.designs"] == ("4", "default")


async def test_an_execution_is_found_by_a_unique_prefix(shared: World) -> None:
    shared.backends.policy.reply = lambda request: RIGHT
    job = await shared.evaluate(math_task("traced"))
    (item,) = await shared.items(job.job_id)
    get = shared.training.GetExecution
    trace = await get(training_pb2.GetExecutionRequest(execution_id=item.execution_id[:8]))
    assert (trace.execution_id, trace.run_id, trace.task_id) == (item.execution_id, job.job_id, "traced")
    for prefix, code, said in (("", "INVALID_ARGUMENT", "empty"), ("abc", "INVALID_ARGUMENT", "too short")):
        with refused(code, said, field="execution_id"):
            await get(training_pb2.GetExecutionRequest(execution_id=prefix))
    for unknown in ("000000", "zzzzzz", "%%%%%%", "é" * 6):
        with refused("NOT_FOUND", unknown):
            await get(training_pb2.GetExecutionRequest(execution_id=unknown))


async def test_a_prefix_of_two_executions_is_ambiguous(open_world, monkeypatch: pytest.MonkeyPatch) -> None:
    from troupe_orchestrator.rollout import task

    hashed = task.node_id
    monkeypatch.setattr(task, "node_id", lambda *place: f"abcdef{hashed(*place)[6:]}")
    async with open_world() as opened:
        await opened.evaluate(*TASKS[:2])
        with refused("INVALID_ARGUMENT", "several", field="execution_id"):
            await opened.training.GetExecution(training_pb2.GetExecutionRequest(execution_id="abcdef"))


async def test_an_orchestrator_without_engines_shows_records_and_refuses_work_by_name(open_world, tmp_path) -> None:
    async with open_world(learner=True) as opened:
        await opened.run(opened.config(TASKS, steps=1))
        job = await opened.evaluate(TASKS[0], job_id="seen")
        config = opened.config(TASKS)
        (item,) = await opened.items("seen")
    async with world(tmp_path, None) as records:
        assert (await records.get_run()).state == training_pb2.RUN_STATE_SUCCEEDED
        assert [event.event_id for event in await records.run_events()][:2] == [1, 2]
        assert await records.evaluation.GetEvalJob(evaluation_pb2.GetEvalJobRequest(job_id="seen")) == job
        request = training_pb2.GetExecutionRequest(execution_id=item.execution_id)
        assert (await records.training.GetExecution(request)).answer == "42"
        for call in (
            records.training.CreateRun(Create(config=config)),
            records.evaluation.CreateEvalJob(eval_request(TASKS[0])),
            records.solver.Solve(solver_pb2.SolveRequest(question="6 * 7?")).read(),
        ):
            with refused("FAILED_PRECONDITION", "TROUPE_EXECUTOR"):
                await call


async def test_an_interrupted_run_can_be_watched_to_its_last_event_where_nothing_runs(open_world, tmp_path) -> None:
    async with open_world(learner=True) as opened:
        gate = asyncio.Event()

        async def waits(request: policy_pb2.GenerateRequest) -> str:
            await gate.wait()
            return RIGHT

        opened.backends.policy.reply = waits
        await opened.training.CreateRun(Create(run_id="run", config=opened.config(TASKS)))
    async with world(tmp_path, None) as records:
        assert (await records.get_run()).state == training_pb2.RUN_STATE_RUNNING
        assert await asyncio.wait_for(records.run_events(), 5) == []


async def test_an_orchestrator_whose_learner_has_another_tokenizer_does_not_start_and_names_both(
    open_world, stand_ins: Backends
) -> None:
    stand_ins.learner.tokenizer_digest = "b" * 64
    with pytest.raises(PolicyMismatchError, match=r"tokenizer_digest.*bbbbbbbbbbbb.*tttttttttttt"):
        async with open_world(learner=True):
            pytest.fail("it started")


async def test_an_id_that_postgresql_could_not_hold_is_nobodys(open_world, postgres: PostgresServer) -> None:
    """It takes no NUL, where SQLite does."""
    bad = "abcdef\0b"
    run, job = training_pb2, evaluation_pb2
    async with open_world(learner=True, store_url=postgres.new_database()) as world:
        training, evaluation = world.training, world.evaluation
        for call in (
            lambda: training.GetRun(run.GetRunRequest(run_id=bad)),
            lambda: training.PauseRun(run.PauseRunRequest(run_id=bad)),
            lambda: training.ResumeRun(run.ResumeRunRequest(run_id=bad)),
            lambda: training.CancelRun(run.CancelRunRequest(run_id=bad)),
            lambda: training.ForkRun(run.ForkRunRequest(parent_run_id=bad, run_id="fork", step=1)),
            lambda: training.GetExecution(run.GetExecutionRequest(execution_id=bad)),
            lambda: evaluation.GetEvalJob(job.GetEvalJobRequest(job_id=bad)),
            lambda: evaluation.CancelEvalJob(job.CancelEvalJobRequest(job_id=bad)),
            lambda: evaluation.ResumeEvalJob(job.ResumeEvalJobRequest(job_id=bad)),
            lambda: evaluation.ListEvalItems(job.ListEvalItemsRequest(job_id=bad)),
            lambda: evaluation.CreateEvalJob(eval_request(*TASKS, mode=job.EVAL_MODE_STORED_DESIGNS, designs_of=bad)),
        ):
            with refused("NOT_FOUND", "abcdef"):
                await call()
        assert not (await training.ListRuns(run.ListRunsRequest(page_token=f"1.0/{bad}"))).runs
        assert not (await evaluation.ListEvalJobs(job.ListEvalJobsRequest(page_token=f"1.0/{bad}"))).jobs
