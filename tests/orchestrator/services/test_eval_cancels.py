"""Cancelling eval jobs at bad moments: one call is enough, and the engines get their own weights back."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from orchestrated.models import RIGHT
from orchestrated.world import Backends, World, eval_request, math_task
from safetensors.numpy import save_file
from troupe.v1 import evaluation_pb2, policy_pb2
from troupe_orchestrator.evaluation import jobs, lending
from troupe_orchestrator.evaluation.job_log import JobLog
from troupe_orchestrator.evaluation.job_records import JobRecords
from troupe_orchestrator.store import evals
from troupe_orchestrator.store.outages import _AWAY, StoreUnavailableError
from troupe_orchestrator.training.weights import SyncReport, load_weights

pytestmark = pytest.mark.asyncio(loop_scope="session")

HELD = [math_task("held-0"), math_task("held-1")]
CANCELLED = evaluation_pb2.EVAL_STATE_CANCELLED
WATCH = evaluation_pb2.WatchEvalJobRequest(job_id="job")


async def cancel(world: World) -> evaluation_pb2.EvalJob:
    return await world.evaluation.CancelEvalJob(evaluation_pb2.CancelEvalJobRequest(job_id="job"))


async def begun(stand_ins: Backends) -> None:
    async with asyncio.timeout(20):
        while len(stand_ins.policy.requests) < len(HELD):
            await asyncio.sleep(0.01)


async def never(request: policy_pb2.GenerateRequest) -> str:
    await asyncio.Event().wait()
    return RIGHT


def away() -> StoreUnavailableError:
    return StoreUnavailableError("the store", _AWAY, ConnectionError("refused"))


async def test_a_second_cancel_leaves_no_lent_weights_in_the_engines(
    open_world, stand_ins: Backends, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    save_file({"a.weight": np.ones((4, 3), dtype=np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"tie_word_embeddings": False}))
    gives_back, may = asyncio.Event(), asyncio.Event()

    async def held(*arguments: Any) -> SyncReport:
        if stand_ins.policy.requests:
            gives_back.set()
            await may.wait()
        return await load_weights(*arguments)

    monkeypatch.setattr(lending, "load_weights", held)
    async with open_world(learner=True) as world:
        stand_ins.policy.reply = never
        target = evaluation_pb2.EvalTarget(checkpoint=evaluation_pb2.CheckpointTarget(uris={"scripted": str(folder)}))
        await world.evaluation.CreateEvalJob(eval_request(*HELD, target=target, job_id="job"))
        await begun(stand_ins)
        first = asyncio.create_task(cancel(world))
        await asyncio.wait_for(gives_back.wait(), 20)
        second = asyncio.create_task(cancel(world))
        await asyncio.sleep(0.1)
        may.set()
        assert (await first).state == (await second).state == CANCELLED
        assert stand_ins.policy.weights.version.lineage == "start"
        with sqlite3.connect(world.folder / "data" / "troupe.db") as connection:
            assert connection.execute("select * from weight_loans").fetchall() == []


async def test_one_cancel_is_enough_where_the_store_is_away_when_it_is_to_be_recorded(
    open_world, stand_ins: Backends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_STORE_PAUSE_SECONDS", 0.05)
    end_job, failures = evals.end_job, [away(), away()]

    async def outage(*args: object) -> None:
        if failures:
            raise failures.pop()
        await end_job(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(evals, "end_job", outage)
    async with open_world() as world:
        stand_ins.policy.reply = never
        await world.evaluation.CreateEvalJob(eval_request(*HELD, job_id="job"))
        await begun(stand_ins)
        assert (await cancel(world)).state == CANCELLED
        assert not failures
        assert len(stand_ins.policy.requests) == len(HELD), "nothing was run after the cancel"


async def test_one_cancel_is_enough_for_a_job_that_waits_for_the_store(
    open_world, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = asyncio.Event()

    async def outage(*_: object) -> None:
        waits.set()
        raise away()

    monkeypatch.setattr(evals, "add_items", outage)
    async with open_world() as world:
        await world.evaluation.CreateEvalJob(eval_request(*HELD, job_id="job"))
        await asyncio.wait_for(waits.wait(), 20)
        await asyncio.sleep(0.1)
        assert (await cancel(world)).state == CANCELLED


@pytest.mark.parametrize("moment", ["open", "add"])
async def test_a_job_that_is_cancelled_while_it_is_created_is_cancelled_and_nothing_of_it_runs_on(
    open_world, stand_ins: Backends, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    on_record, may = asyncio.Event(), asyncio.Event()
    call = getattr(JobRecords, moment)

    async def held(records: JobRecords, *arguments: Any, **given: Any) -> Any:
        found = await call(records, *arguments, **given)
        on_record.set()
        await may.wait()
        return found

    monkeypatch.setattr(JobRecords, moment, held)
    stand_ins.policy.reply = never
    async with open_world() as world:
        request = eval_request(*HELD, job_id="job")
        creating = asyncio.ensure_future(_call(world.evaluation.CreateEvalJob(request)))
        await asyncio.wait_for(on_record.wait(), 20)
        cancelling = asyncio.ensure_future(cancel(world))
        await asyncio.sleep(0.2)
        assert not cancelling.done(), "two may not write to one job"
        may.set()
        await creating
        assert (await cancelling).state == CANCELLED
        events = [event async for event in world.evaluation.WatchEvalJob(WATCH)]
        assert [event.event_id for event in events] == list(range(1, len(events) + 1))
        assert events[-1].job.state == CANCELLED
        sent = len(stand_ins.policy.requests)
        await asyncio.sleep(0.3)
        assert len(stand_ins.policy.requests) == sent


async def test_a_job_that_is_cancelled_before_its_task_has_begun_is_cancelled(
    open_world, stand_ins: Backends, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = jobs.EvalJobs._start

    def started_and_cancelled(self: jobs.EvalJobs, log: JobLog) -> None:
        start(self, log)
        call = self.cancel(log.record.job_id)
        call.send(None)  # as far as it gets before anything else is done
        call.close()

    monkeypatch.setattr(jobs.EvalJobs, "_start", started_and_cancelled)
    async with open_world() as world:
        await world.evaluation.CreateEvalJob(eval_request(*HELD, job_id="job"))
        events = await world.watched("job")
        assert events[-1].job.state == CANCELLED
        assert not stand_ins.policy.requests


async def _call(call: Awaitable[Any]) -> Any:
    return await call
