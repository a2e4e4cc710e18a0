"""Many clients call at once, in any order, and give up when they like: all that is under way comes to an end, told once.

What clients do to one another's runs and jobs is drawn from a seed; orchestrators are closed in the middle and follow one
another on one store, which may lose transactions and answers. After each storm the store says what happened, and the
policies are free for the next run.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from random import Random
from typing import Any

import grpc
import pytest
from orchestrated.models import right_unless_guessed
from orchestrated.world import Backends, World, eval_request, math_task
from sqlalchemy.ext.asyncio import AsyncConnection
from troupe.v1 import evaluation_pb2, policy_pb2, training_pb2
from troupe_orchestrator.evaluation import jobs
from troupe_orchestrator.store.database import Database, StoreUnavailableError
from troupe_orchestrator.store.outages import Outage
from troupe_orchestrator.training import active_run, endurance, run_queue

pytestmark = pytest.mark.asyncio(loop_scope="session")

TASKS = [math_task(f"task-{number}") for number in range(5)]
HELD = [math_task("held-0"), math_task("held-1")]
RUNS, FORKS, JOBS = ("one", "two", "three", "four"), ("fork", "other"), ("job", "exam", "test")
CLIENTS, CALLS = 8, 30
REFUSALS = {"NOT_FOUND", "FAILED_PRECONDITION", "DEADLINE_EXCEEDED", "CANCELLED"}
STANDING = {training_pb2.RunState.Value(f"RUN_STATE_{name}") for name in ("PAUSED", "SUCCEEDED", "CANCELLED")}
ENDED = {evaluation_pb2.EvalState.Value(f"EVAL_STATE_{name}") for name in ("SUCCEEDED", "CANCELLED")}


class Storm:
    """Calls of clients that know nothing of one another."""

    def __init__(self, world: World, seed: int, refusals: set[str]) -> None:
        self._world = world
        self._refusals = refusals
        self._random = Random(seed)
        self._config = world.config(TASKS, steps=3, checkpoint={"every": 1, "keep": 3}, name="storm")
        runs = (self._create, self._pause, self._resume, self._cancel, self._fork, self._watch)
        jobs = (self._evaluate, self._resume_job, self._cancel_job, self._watch_job)
        self._calls = runs + jobs

    async def client(self) -> None:
        for _ in range(CALLS):
            call = self._random.choice(self._calls)
            # Some give up in the middle of it.
            patience = self._random.choice((0.003, 0.01, 0.03, 0.3, 2.0))
            try:
                await call(patience)
            except grpc.aio.AioRpcError as error:
                if error.code().name not in self._refusals:
                    raise
            await asyncio.sleep(self._random.random() * 0.05)

    async def _create(self, patience: float) -> None:
        run_id, queue = self._random.choice(RUNS), self._random.random() < 0.7
        request = training_pb2.CreateRunRequest(run_id=run_id, config=self._config, queue=queue)
        await self._world.training.CreateRun(request, timeout=patience)

    async def _fork(self, patience: float) -> None:
        request = training_pb2.ForkRunRequest(
            parent_run_id=self._random.choice(RUNS), step=1, run_id=self._random.choice(FORKS), queue=True
        )
        await self._world.training.ForkRun(request, timeout=patience)

    async def _pause(self, patience: float) -> None:
        await self._world.training.PauseRun(training_pb2.PauseRunRequest(run_id=self._run()), timeout=patience)

    async def _resume(self, patience: float) -> None:
        await self._world.training.ResumeRun(training_pb2.ResumeRunRequest(run_id=self._run()), timeout=patience)

    async def _cancel(self, patience: float) -> None:
        # Most go on to their end.
        if self._random.random() < 0.3:
            await self._world.training.CancelRun(training_pb2.CancelRunRequest(run_id=self._run()), timeout=patience)

    async def _watch(self, patience: float) -> None:
        request = training_pb2.WatchRunRequest(run_id=self._run(), after_event_id=self._random.randrange(4))
        async for _ in self._world.training.WatchRun(request, timeout=patience):
            pass

    async def _evaluate(self, patience: float) -> None:
        await self._world.evaluation.CreateEvalJob(eval_request(*HELD, job_id=self._job()), timeout=patience)

    async def _cancel_job(self, patience: float) -> None:
        request = evaluation_pb2.CancelEvalJobRequest(job_id=self._job())
        await self._world.evaluation.CancelEvalJob(request, timeout=patience)

    async def _resume_job(self, patience: float) -> None:
        request = evaluation_pb2.ResumeEvalJobRequest(job_id=self._job())
        await self._world.evaluation.ResumeEvalJob(request, timeout=patience)

    async def _watch_job(self, patience: float) -> None:
        request = evaluation_pb2.WatchEvalJobRequest(job_id=self._job(), after_event_id=self._random.randrange(4))
        async for _ in self._world.evaluation.WatchEvalJob(request, timeout=patience):
            pass

    def _run(self) -> str:
        return self._random.choice((*RUNS, *FORKS))

    def _job(self) -> str:
        return self._random.choice(JOBS)


async def settled(world: World) -> None:
    """Returns once nothing is under way: who watches is told of an end."""
    for run in (await world.training.ListRuns(training_pb2.ListRunsRequest())).runs:
        await world.run_events(run.run_id)
    for job in (await world.evaluation.ListEvalJobs(evaluation_pb2.ListEvalJobsRequest())).jobs:
        await world.watched(job.job_id)


async def check_run(world: World, run_id: str) -> None:
    run, events = await world.get_run(run_id), await world.run_events(run_id)
    assert run.state in STANDING, run
    assert [event.event_id for event in events] == list(range(1, len(events) + 1))
    states = [event.state_changed.state for event in events if event.HasField("state_changed")]
    assert states[-1] == run.state
    assert all(before != after for before, after in itertools.pairwise(states)), "a change is told once"
    steps = [event.step for event in events if event.HasField("step_committed")]
    assert steps == list(range(run.committed_steps - len(steps) + 1, run.committed_steps + 1))
    if run.state == training_pb2.RUN_STATE_SUCCEEDED:
        assert run.committed_steps == run.total_steps == 3


async def check_job(world: World, job_id: str) -> None:
    events, items = await world.watched(job_id), await world.items(job_id)
    job = events[-1].job
    # A job that was cancelled with items of other weights cannot go on.
    assert job.state in ENDED or "two versions are not mixed" in job.reason, job.reason
    assert [event.event_id for event in events] == list(range(1, len(events) + 1))
    assert len({(item.problem_id, item.sample) for item in items}) == len(items) <= len(HELD)
    if job.state == evaluation_pb2.EVAL_STATE_SUCCEEDED:
        assert len(items) == len(HELD)


async def storm(world: World, seed: int, store: Store) -> None:
    raging = Storm(world, seed, REFUSALS | ({"UNAVAILABLE"} if store.loses else set()))
    with store.unreliable():
        async with asyncio.TaskGroup() as clients:
            for _ in range(CLIENTS):
                clients.create_task(raging.client())


async def interrupted(world: World, seed: int, seconds: float, store: Store) -> None:
    """The orchestrator goes down under its clients."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(storm(world, seed, store), seconds)


async def check(world: World, backends: Backends, last: str) -> None:
    await settled(world)
    for run in (await world.training.ListRuns(training_pb2.ListRunsRequest())).runs:
        await check_run(world, run.run_id)
    for job in (await world.evaluation.ListEvalJobs(evaluation_pb2.ListEvalJobsRequest())).jobs:
        await check_job(world, job.job_id)
    # The policies are free, and what is trained next is what its events say.
    events = await world.run(world.config(TASKS), last)
    assert (await world.get_run(last)).state == training_pb2.RUN_STATE_SUCCEEDED
    digests = [event.step_committed.digest for event in events if event.HasField("step_committed")]
    assert [each.digest for each in backends.learner.applied] == digests
    assert backends.policy.weights.version == backends.learner.version


def replies(seed: int) -> Callable[[policy_pb2.GenerateRequest], Awaitable[str]]:
    random = Random(seed)

    async def reply(request: policy_pb2.GenerateRequest) -> str:
        await asyncio.sleep(random.random() * 0.02)
        return right_unless_guessed(request)

    return reply


class Store:
    """Loses some of the transactions that write, or their answers, while it is unreliable."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seed: int, loses: float) -> None:
        self._random = Random(seed)
        self.loses = loses
        self._writing = Database.writing
        self._unreliable = False
        store = self

        @contextlib.asynccontextmanager
        async def writing(database: Database) -> AsyncIterator[AsyncConnection]:
            lost = store._lost()
            if lost == "away":
                raise unavailable(in_doubt=False)
            async with store._writing(database) as connection:
                yield connection
                if lost == "transaction":
                    raise unavailable(in_doubt=True)
            if lost == "answer":
                raise unavailable(in_doubt=True)

        monkeypatch.setattr(Database, "writing", writing)
        monkeypatch.setattr(endurance, "_FIRST_PAUSE_SECONDS", 0.01)
        for module, name in ((active_run, ""), (run_queue, ""), (jobs, "_")):
            monkeypatch.setattr(module, f"{name}STORE_PAUSE_SECONDS", 0.05)

    @contextlib.contextmanager
    def unreliable(self) -> Iterator[None]:
        self._unreliable = True
        try:
            yield
        finally:
            self._unreliable = False

    def _lost(self) -> str:
        if not self._unreliable or self._random.random() >= self.loses:
            return ""
        return self._random.choice(("away", "transaction", "answer"))


def unavailable(in_doubt: bool) -> StoreUnavailableError:
    return StoreUnavailableError("the store", Outage("was reset", "wait"), ConnectionError("reset"), in_doubt)


async def rides_out(open_world: Any, stand_ins: Backends, seed: int, store: Store, store_url: str) -> None:
    stand_ins.policy.reply = replies(seed)
    opened = partial(open_world, learner=True, patience_seconds=30.0, store_url=store_url)
    for number in range(2):
        async with opened() as world:
            await interrupted(world, 10 * seed + number, Random(seed + number).uniform(0.2, 2.0), store)
    async with opened() as world:
        await storm(world, 10 * seed + 9, store)
        await check(world, stand_ins, "last")


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("store_url", "loses"), [("sqlite", 0.0), ("postgresql", 0.1)], indirect=["store_url"])
async def test_a_storm_of_calls_leaves_nothing_under_way_and_nothing_told_twice(
    open_world, stand_ins: Backends, monkeypatch: pytest.MonkeyPatch, store_url: str, loses: float
) -> None:
    await rides_out(open_world, stand_ins, 0, Store(monkeypatch, 0, loses), store_url)


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", range(100, 108))
@pytest.mark.parametrize("loses", [0.0, 0.1], ids=["reliable", "unreliable"])
async def test_nor_do_many(
    open_world, stand_ins: Backends, monkeypatch: pytest.MonkeyPatch, store_url: str, seed: int, loses: float
) -> None:
    await rides_out(open_world, stand_ins, seed, Store(monkeypatch, seed, loses), store_url)
