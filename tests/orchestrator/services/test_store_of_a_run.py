"""What a run does when its store is PostgreSQL, restarts, loses commits or fills up: it waits, goes on, and trains once."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from orchestrated.models import question_of, right_unless_guessed
from orchestrated.world import Backends, World, eval_request, math_task, refused
from storage.cutting_proxy import CuttingProxy
from storage.locked_file import locked
from storage.postgres import PostgresServer
from storage.small_disk import SmallDisk, small_disk
from troupe.v1 import evaluation_pb2, policy_pb2, training_pb2
from troupe_orchestrator import app
from troupe_orchestrator.store.database import Database

pytestmark = [pytest.mark.long, pytest.mark.asyncio(loop_scope="session")]

JOB = evaluation_pb2.GetEvalJobRequest(job_id="job")
TASKS = [math_task(f"task-{number}") for number in range(4)]


class Gate:
    """Holds the agents of one task back until it is opened."""

    def __init__(self, task: str) -> None:
        self.open = asyncio.Event()
        self.reached = asyncio.Event()
        self._task = task

    async def __call__(self, request: policy_pb2.GenerateRequest) -> str:
        if f"({self._task})" in question_of(request):
            self.reached.set()
            await self.open.wait()
        return right_unless_guessed(request)


class Impatient(Database):
    """A store for which nobody waits long."""

    @classmethod
    async def open(
        cls, url: str, lease_seconds: float, wait_seconds: float = 0.0, patience_seconds: float = 0.3
    ) -> "Impatient":
        return await super().open(url, lease_seconds, wait_seconds, patience_seconds)


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "Database", Impatient)


def steps_of(events: list[training_pb2.RunEvent]) -> list[int]:
    return [event.step for event in events if event.HasField("step_committed")]


def conditions(events: list[training_pb2.RunEvent]) -> set[str]:
    return {event.condition.reason for event in events if event.HasField("condition")}


async def ended_well(world: World, steps: int, events: list[training_pb2.RunEvent]) -> None:
    """The run succeeded, each step is told and trained once, and nothing was blamed on a task."""
    run = await world.get_run()
    assert run.state == training_pb2.RUN_STATE_SUCCEEDED, run.reason
    assert steps_of(events) == list(range(1, steps + 1))
    assert [event.event_id for event in events] == list(range(1, len(events) + 1))
    learner = world.backends.learner
    assert [applied.step for applied in learner.applied] == list(range(1, steps + 1))
    committed = [event.step_committed for event in events if event.HasField("step_committed")]
    assert [applied.digest for applied in learner.applied] == [step.digest for step in committed]
    assert not {"TaskDropped", "TaskQuarantined"} & conditions(events)
    assert {step.metrics["executions"] for step in committed} == {4}


async def test_a_run_on_postgresql_goes_on_where_it_stood(
    open_world, stand_ins: Backends, postgres: PostgresServer
) -> None:
    url = postgres.new_database()
    async with open_world(learner=True, store_url=url) as world:
        stand_ins.policy.reply = gate = Gate("task-3")
        config = world.config(TASKS, steps=3)
        await world.training.CreateRun(training_pb2.CreateRunRequest(run_id="run", config=config))
        await asyncio.wait_for(gate.reached.wait(), 30)
    stand_ins.policy.reply = right_unless_guessed
    async with open_world(learner=True, store_url=url) as world:
        await ended_well(world, 3, await world.run_events())
        listed = await world.training.ListRuns(training_pb2.ListRunsRequest())
        (run,) = listed.runs
        assert (run.run_id, run.committed_steps) == ("run", 3)
        assert run.disk_bytes.trees > 0
        assert run.disk_bytes.batches == 0  # all of them are in the checkpoint at the end


@pytest.mark.usefixtures("_impatient")
async def test_a_run_whose_server_is_down_for_longer_than_anybody_waits_goes_on_by_itself(
    open_world, stand_ins: Backends, postgres: PostgresServer
) -> None:
    async with open_world(learner=True, store_url=postgres.new_database()) as world:
        stand_ins.policy.reply = gate = Gate("task-1")
        config = world.config(TASKS)
        await world.training.CreateRun(training_pb2.CreateRunRequest(run_id="run", config=config))
        await asyncio.wait_for(gate.reached.wait(), 30)
        postgres.kill()
        try:
            gate.open.set()
            await asyncio.sleep(2)
            with refused("UNAVAILABLE", "cannot be reached", "start its server"):
                await world.get_run()
        finally:
            postgres.start()
        await ended_well(world, 2, await world.run_events())


@pytest.mark.usefixtures("_impatient")
async def test_an_eval_job_whose_server_is_down_for_longer_than_anybody_waits_goes_on_by_itself(
    open_world, stand_ins: Backends, postgres: PostgresServer
) -> None:
    async with open_world(store_url=postgres.new_database()) as world:
        stand_ins.policy.reply = gate = Gate("task-1")
        await world.evaluation.CreateEvalJob(eval_request(*TASKS, job_id="job"))
        await asyncio.wait_for(gate.reached.wait(), 30)
        postgres.kill()
        try:
            gate.open.set()
            await asyncio.sleep(2)
        finally:
            postgres.start()
        async with asyncio.timeout(30):
            while (await world.evaluation.GetEvalJob(JOB)).state == evaluation_pb2.EVAL_STATE_RUNNING:
                await asyncio.sleep(0.1)
        job = (await world.watched("job"))[-1].job
        assert (job.state, job.items_done) == (evaluation_pb2.EVAL_STATE_SUCCEEDED, 4), job.reason
        assert sorted(item.problem_id for item in await world.items("job")) == [f"task-{number}" for number in range(4)]
        assert {item.status for item in await world.items("job")} == {"ok"}


@pytest.mark.usefixtures("_impatient")
async def test_a_run_whose_store_is_locked_says_so_while_it_lasts_and_has_it_in_its_events_after(
    open_world, stand_ins: Backends
) -> None:
    async with open_world(learner=True) as world:
        stand_ins.policy.reply = gate = Gate("task-1")
        await world.training.CreateRun(training_pb2.CreateRunRequest(run_id="run", config=world.config(TASKS)))
        await asyncio.wait_for(gate.reached.wait(), 30)
        assert (await world.get_run()).reason == ""
        file = world.folder / "data" / "troupe.db"
        with contextlib.ExitStack() as lock:
            # In a thread: the orchestrator of this process may have to end a transaction first.
            await asyncio.to_thread(lock.enter_context, locked(file))
            gate.open.set()
            async with asyncio.timeout(30):
                while not (run := await world.get_run()).reason:
                    await asyncio.sleep(0.1)
            assert run.state == training_pb2.RUN_STATE_RUNNING
            for said in ("waits: StoreUnavailable", f"{file} is locked", "end the process that holds it", "by itself"):
                assert said in run.reason
            await asyncio.sleep(2)  # longer than any one append is tried
            (listed,) = (await world.training.ListRuns(training_pb2.ListRunsRequest())).runs
            assert "is locked" in listed.reason
        events = await world.run_events()
        await ended_well(world, 2, events)
        told = [event.condition for event in events if event.condition.reason == "StoreUnavailable"]
        assert len(told) == 1
        assert f"{file} is locked" in told[0].message
        assert "s later, when the store was back" in told[0].message
        assert (await world.get_run()).reason == ""


@pytest_asyncio.fixture(loop_scope="session")
async def proxy(postgres: PostgresServer) -> AsyncIterator[CuttingProxy]:
    async with CuttingProxy(postgres.folder) as proxy:
        yield proxy


@pytest.mark.parametrize("phase", [1, 3])  # the first has the creation of the run cut off
async def test_a_run_of_which_every_few_commits_are_cut_off_trains_every_step_once(
    open_world, postgres: PostgresServer, proxy: CuttingProxy, phase: int
) -> None:
    async with open_world(learner=True, store_url=proxy.url(postgres.new_database())) as world:
        proxy.lose_answer = lambda number: number % 5 == phase
        proxy.lose_request = lambda number: number % 11 == 2 * phase
        config = world.config(TASKS, steps=4, checkpoint={"every": 1, "keep": 1})
        created = await _until_created(world, config)
        assert created.run_id == "run"
        events = await world.run_events()
        assert proxy.cuts >= 5
        proxy.lose_answer = proxy.lose_request = lambda _: False
        await ended_well(world, 4, [event for event in events if not event.HasField("state_changed")])
        assert len(world.backends.learner.checkpoints) >= 4


async def _until_created(world: World, config: str) -> training_pb2.Run:
    """A client whose call may be what is cut off, and who asks again: the same id and config are the same run."""
    request = training_pb2.CreateRunRequest(run_id="run", config=config)
    for _ in range(5):
        try:
            return await world.training.CreateRun(request)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
    raise AssertionError("never created")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "data", megabytes=4) as disk:
        yield disk


@pytest.mark.usefixtures("_impatient")
async def test_a_run_on_a_full_disk_says_so_and_goes_on_when_space_is_freed(
    open_world, stand_ins: Backends, disk: SmallDisk
) -> None:
    async with open_world(learner=True) as world:
        stand_ins.policy.reply = gate = Gate("task-1")
        await world.training.CreateRun(training_pb2.CreateRunRequest(run_id="run", config=world.config(TASKS)))
        await asyncio.wait_for(gate.reached.wait(), 30)
        applied = world.backends.learner.applied
        disk.fill()
        gate.open.set()
        await asyncio.sleep(2)
        assert (await world.get_run()).state in (training_pb2.RUN_STATE_RUNNING, training_pb2.RUN_STATE_PAUSED)
        assert world.backends.learner.applied == applied
        disk.free()
        # SQLite is on that disk too: whether the run could say that it pauses depends on the last few bytes.
        await asyncio.sleep(2)
        run = await world.get_run()
        if run.state == training_pb2.RUN_STATE_PAUSED:
            assert "cannot be written (No space left on device" in run.reason
            assert "free space on its file system" in run.reason
            await world.training.ResumeRun(training_pb2.ResumeRunRequest(run_id="run"))
        told = await world.run_events()
        events = [event for event in told if event.WhichOneof("event") == "step_committed"]
        run = await world.get_run()
        assert run.state == training_pb2.RUN_STATE_SUCCEEDED, run.reason
        assert steps_of(events) == [1, 2]
        assert conditions(told) & {"StoreUnavailable", "DiskFull"}
        assert [applied.step for applied in world.backends.learner.applied] == [1, 2]
        left = [path.name for path in (disk.folder / "runs").rglob("*") if path.name.endswith(".partial")]
        assert left == []


@pytest.mark.usefixtures("_impatient")
async def test_a_full_disk_that_leaves_the_database_alone_pauses_the_run_with_the_file_and_the_remedy(
    open_world, stand_ins: Backends, disk: SmallDisk, postgres: PostgresServer
) -> None:
    async with open_world(learner=True, store_url=postgres.new_database()) as world:
        stand_ins.policy.reply = gate = Gate("task-1")
        await world.training.CreateRun(training_pb2.CreateRunRequest(run_id="run", config=world.config(TASKS)))
        await asyncio.wait_for(gate.reached.wait(), 30)
        disk.fill()
        gate.open.set()
        events = await world.run_events()
        run = await world.get_run()
        assert run.state == training_pb2.RUN_STATE_PAUSED
        assert "DiskFull" in conditions(events)
        for said in (str(disk.folder), ".parquet cannot be written (No space left on device", "free space on its file"):
            assert said in run.reason
        disk.free()
        await world.training.ResumeRun(training_pb2.ResumeRunRequest(run_id="run"))
        events = await world.run_events()
        assert (await world.get_run()).state == training_pb2.RUN_STATE_SUCCEEDED
        assert steps_of(events) == [1, 2]
        assert [applied.step for applied in world.backends.learner.applied] == [1, 2]


async def test_an_execution_whose_trees_were_collected_is_not_found_and_says_how_to_keep_it(open_world) -> None:
    async with open_world(learner=True) as world:
        config = world.config(TASKS, steps=3, retention={"trees": 1}, checkpoint={"every": 1, "keep": 1})
        await world.run(config)
        steps = world.folder / "data" / "runs" / "run" / "steps"
        assert sorted(path.parent.name for path in steps.glob("*/trees-*.parquet")) == ["000003"]
        assert sorted(path.parent.name for path in steps.glob("*/batch-*.parquet")) == []
        with sqlite3.connect(world.folder / "data" / "troupe.db") as connection:
            query = "SELECT execution_id FROM executions JOIN tree_files USING (file_id) WHERE step = 1"
            execution = connection.execute(query).fetchone()[0]
        with refused("NOT_FOUND", "trees of step 1 of run run were collected", "retention: {trees: all}"):
            await world.training.GetExecution(training_pb2.GetExecutionRequest(execution_id=execution))
