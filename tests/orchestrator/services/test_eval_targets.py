"""Whom an eval job evaluates: checkpoints lent to the engines and given back, other services, and what cannot be."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from orchestrated.child import child
from orchestrated.faults import LostTogether
from orchestrated.models import RIGHT, SINGLE, WRONG, question_of
from orchestrated.world import Backends, World, backends, eval_request, math_task, refused
from safetensors.numpy import save_file
from troupe.v1 import evaluation_pb2, policy_pb2
from troupe_contracts.errors import Unavailable

pytestmark = pytest.mark.asyncio(loop_scope="session")

TASKS = [math_task(f"task-{number}") for number in range(4)]
HELD = [math_task("held-0"), math_task("held-1")]
SUCCEEDED, FAILED = evaluation_pb2.EVAL_STATE_SUCCEEDED, evaluation_pb2.EVAL_STATE_FAILED


def weights_in(folder: Path, seed: int = 0) -> Path:
    """A model folder with two tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).normal(size=(4, 3)).astype(np.float32)
    save_file({"a.weight": values, "b.weight": values[:1]}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"tie_word_embeddings": False}))
    return folder


def checkpoint(run_id: str = "", step: int = 0, best: bool = False, **uris: str) -> evaluation_pb2.EvalTarget:
    named = evaluation_pb2.CheckpointTarget(run_id=run_id, step=step, best=best, uris=uris)
    return evaluation_pb2.EvalTarget(checkpoint=named)


def endpoint(executor: str = "", designer: str = "") -> evaluation_pb2.EvalTarget:
    return evaluation_pb2.EvalTarget(endpoint=evaluation_pb2.EndpointTarget(executor=executor, designer=designer))


async def versions(world: World, job: evaluation_pb2.EvalJob) -> set[tuple[str, int]]:
    items = await world.items(job.job_id)
    return {(v.lineage, v.number) for item in items for v in (item.designer_version, item.executor_version)}


async def trained(world: World) -> None:
    """A run of two steps with a checkpoint after each, and weights where the stand-in learner wrote none."""
    config = world.config(TASKS, checkpoint={"every": 1, "keep": 2})
    assert [event.step for event in await world.run(config) if event.HasField("step_committed")] == [1, 2]
    for number, uri in enumerate(sorted(world.backends.learner.checkpoints)):
        weights_in(Path(uri) / "model", number)


async def test_a_checkpoint_is_evaluated_under_its_own_version_and_the_current_one_is_back_afterwards(
    open_world, stand_ins: Backends
) -> None:
    async with open_world(learner=True) as world:
        await trained(world)
        job = await world.evaluate(*HELD, target=checkpoint("run", step=1))
        assert (job.state, job.items_done) == (SUCCEEDED, 2), job.reason
        assert await versions(world, job) == {("start", 1)}
        assert list(job.target.checkpoint.uris) == ["scripted"]
        assert stand_ins.policy.weights.committed == [1, 2, 1, 2]
        sources = [begun.source.WhichOneof("source") for begun in stand_ins.policy.weights.begins]
        assert sources == ["learner_target", "learner_target", "store_uri", "learner_target"]
        job = await world.evaluate(*HELD)
        assert await versions(world, job) == {("start", 2)}


async def test_weights_in_a_folder_are_named_after_their_content(open_world, stand_ins: Backends, tmp_path) -> None:
    folder = weights_in(tmp_path / "weights")
    other = weights_in(tmp_path / "others", seed=1)
    async with open_world(learner=True) as world:
        found = []
        for uri in (folder, folder, other):
            job = await world.evaluate(*HELD, target=checkpoint(scripted=str(uri)))
            assert job.state == SUCCEEDED, job.reason
            (version,) = await versions(world, job)
            found.append(version)
        assert found[0] == found[1] != found[2]
        assert found[0][0].startswith("weights-")
        assert stand_ins.policy.weights.version.lineage == "start"


async def test_a_checkpoint_that_is_not_there_or_of_another_policy_is_refused_by_name(open_world, tmp_path) -> None:
    async with open_world(learner=True) as world:
        await trained(world)
        for target, code, said in (
            (checkpoint("nobody", step=1), "NOT_FOUND", "nobody"),
            (checkpoint("run", step=7), "NOT_FOUND", "[1, 2]"),
            (checkpoint("run", best=True), "FAILED_PRECONDITION", "no validated step"),
            (checkpoint("run"), "INVALID_ARGUMENT", "step"),
            (checkpoint(other="/nowhere"), "FAILED_PRECONDITION", "scripted"),
        ):
            with refused(code, said):
                await world.evaluation.CreateEvalJob(eval_request(*HELD, target=target))
        job = await world.evaluate(*HELD, target=checkpoint(scripted=str(tmp_path / "nothing")))
        assert (job.state, "safetensors" in job.reason) == (FAILED, True)
        assert (await world.evaluate(*HELD)).state == SUCCEEDED


async def test_weights_that_could_not_be_given_back_are_never_lent(open_world, tmp_path) -> None:
    """Without a learner the only way back is the engines' own folder, which the stand-ins do not have."""
    async with open_world() as world:
        job = await world.evaluate(*HELD, target=checkpoint(scripted=str(weights_in(tmp_path / "weights"))))
        assert (job.state, "given their weights back" in job.reason) == (FAILED, True), job.reason
        assert world.backends.policy.weights.committed == []


async def test_a_cancelled_checkpoint_job_gives_the_weights_back(open_world, stand_ins: Backends, tmp_path) -> None:
    gate = asyncio.Event()

    async def waits(request: policy_pb2.GenerateRequest) -> str:
        await gate.wait()
        return RIGHT

    async with open_world(learner=True) as world:
        stand_ins.policy.reply = waits
        target = checkpoint(scripted=str(weights_in(tmp_path / "weights")))
        await world.evaluation.CreateEvalJob(eval_request(*HELD, target=target, job_id="job"))
        async with asyncio.timeout(20):
            while not stand_ins.policy.requests:
                await asyncio.sleep(0.01)
        assert stand_ins.policy.weights.version.lineage.startswith("weights-")
        job = await world.evaluation.CancelEvalJob(evaluation_pb2.CancelEvalJobRequest(job_id="job"))
        assert job.state == evaluation_pb2.EVAL_STATE_CANCELLED
        assert stand_ins.policy.weights.version.lineage == "start"


async def test_engines_whose_weights_cannot_be_given_back_serve_nobody_until_they_can(
    open_world, stand_ins: Backends, tmp_path
) -> None:
    learner = stand_ins.learner
    async with open_world(learner=True) as world:
        learner_version = learner.ledger

        def away(request: policy_pb2.GenerateRequest) -> str:
            learner.ledger = learner_version.in_lineage("another")
            return RIGHT

        stand_ins.policy.reply = away
        job = await world.evaluate(*HELD, target=checkpoint(scripted=str(weights_in(tmp_path / "weights"))))
        assert (job.state, "cannot be loaded again" in job.reason) == (FAILED, True), job.reason
        job = await world.evaluate(*HELD)
        assert (job.state, "cannot be loaded again" in job.reason) == (FAILED, True), job.reason
        learner.ledger = learner_version
        stand_ins.policy.reply = lambda request: RIGHT
        job = await world.evaluate(*HELD)
        assert job.state == SUCCEEDED, job.reason
        assert await versions(world, job) == {("start", 0)}


async def test_weights_lent_by_an_orchestrator_that_was_killed_are_never_taken_for_the_current_ones(
    tmp_path: Path, stand_ins: Backends, sandbox: str
) -> None:
    stand_ins.designer.otherwise = [SINGLE]
    gate = asyncio.Event()

    async def waits(request: policy_pb2.GenerateRequest) -> str:
        await gate.wait()
        return RIGHT

    stand_ins.policy.reply = waits
    target = checkpoint(scripted=str(weights_in(tmp_path / "weights")))
    async with child(tmp_path / "world", stand_ins, sandbox, learner=True) as first:
        await first.evaluation.CreateEvalJob(eval_request(*HELD, target=target, job_id="lends"))
        await first.evaluation.CreateEvalJob(eval_request(*HELD, job_id="current"))
        async with asyncio.timeout(20):
            while not stand_ins.policy.requests:
                await asyncio.sleep(0.01)
        first.kill()
    assert stand_ins.policy.weights.version.lineage.startswith("weights-")
    gate.set()
    async with child(tmp_path / "world", stand_ins, sandbox, learner=True) as second:
        found = {}
        for job_id in ("lends", "current"):
            request = evaluation_pb2.WatchEvalJobRequest(job_id=job_id)
            events = [event async for event in second.evaluation.WatchEvalJob(request, timeout=60)]
            assert events[-1].job.state == SUCCEEDED, events[-1].job.reason
            found[job_id] = {item.executor_version.lineage for event in events for item in event.items}
    assert found["current"] == {"start"}
    (lineage,) = found["lends"]
    assert lineage.startswith("weights-")
    assert stand_ins.policy.weights.version.lineage == "start"


async def test_a_job_under_which_engine_and_learner_are_lost_together_ends_by_name(
    open_world, stand_ins: Backends
) -> None:
    async with open_world(learner=True) as world:
        await trained(world)
        losing = LostTogether(stand_ins, lambda request: "(held-1)" in question_of(request))
        job = await world.evaluate(*HELD)
        assert losing.lost
        assert job.state == FAILED
        assert "has other weights" in job.reason
        assert all(item.success for item in await world.items(job.job_id))


async def test_weights_that_a_run_has_replaced_meanwhile_are_not_to_be_given_back(open_world) -> None:
    """An orchestrator was killed while a job had lent weights, and a run came before the next job."""
    async with open_world(learner=True) as world:
        with sqlite3.connect(world.folder / "data" / "troupe.db") as connection:
            connection.execute("insert into weight_loans values ('scripted', 'killed', 'start:0', 'no model')")
        await trained(world)
        job = await world.evaluate(*HELD)
        assert job.state == SUCCEEDED, job.reason
        assert await versions(world, job) == {("start", 2)}


async def test_nor_are_they_where_it_is_not_on_record_that_a_run_has_replaced_them(open_world) -> None:
    """The run's engines have what it made, and the answer of the transaction that forgets the loan was lost."""
    async with open_world(learner=True) as world:
        await trained(world)
        with sqlite3.connect(world.folder / "data" / "troupe.db") as connection:
            connection.execute("insert into weight_loans values ('scripted', 'killed', 'start:0', 'no model')")
        job = await world.evaluate(*HELD)
        assert job.state == SUCCEEDED, job.reason
        assert await versions(world, job) == {("start", 2)}
        with sqlite3.connect(world.folder / "data" / "troupe.db") as connection:
            assert connection.execute("select * from weight_loans").fetchall() == []


async def test_other_services_are_evaluated_beside_a_job_that_holds_our_engines(
    open_world, stand_ins: Backends
) -> None:
    gate = asyncio.Event()

    async def waits(request: policy_pb2.GenerateRequest) -> str:
        await gate.wait()
        return RIGHT

    stand_ins.policy.reply = waits
    async with open_world() as world, backends() as others:
        others.policy.weights.version.lineage = "others"
        others.policy.reply = lambda request: WRONG
        await world.evaluation.CreateEvalJob(eval_request(*HELD, job_id="ours"))
        job = await world.evaluate(*HELD, target=endpoint(executor=others.target, designer=others.target))
        assert (job.state, job.summary.success) == (SUCCEEDED, 0.0), job.reason
        assert await versions(world, job) == {("others", 0)}
        gate.set()
        await world.watched("ours")
        stand_ins.policy.requests.clear()
        job = await world.evaluate(*HELD, target=endpoint(executor=others.target))
        assert await versions(world, job) == {("start", 0), ("others", 0)}
        assert stand_ins.policy.requests == []


async def test_an_endpoint_that_is_not_there_or_something_else_is_refused_by_field(open_world, sandbox: str) -> None:
    async with open_world() as world:
        for target, said in (
            (endpoint(executor="127.0.0.1:1"), "target.endpoint.executor"),
            (endpoint(designer="127.0.0.1:1"), "target.endpoint.designer"),
            (endpoint(executor=sandbox), "troupe.v1.Policy"),
        ):
            with refused("FAILED_PRECONDITION", said):
                await world.evaluation.CreateEvalJob(eval_request(*HELD, target=target))
        with refused("INVALID_ARGUMENT", field="target.endpoint"):
            await world.evaluation.CreateEvalJob(eval_request(*HELD, target=endpoint()))


async def test_a_job_whose_endpoint_changed_its_weights_is_refused_and_mixes_nothing(open_world) -> None:
    async with backends() as others, open_world() as world:

        def reply(request: policy_pb2.GenerateRequest) -> str:
            if "(held-1)" in question_of(request):
                raise Unavailable("gone")
            return RIGHT

        others.policy.reply = reply
        job = await world.evaluate(*HELD, job_id="job", target=endpoint(executor=others.target))
        assert (job.state, job.items_faulted) == (SUCCEEDED, 1)
        others.policy.reply = lambda request: RIGHT
        others.policy.weights.version.number = 5
        await world.evaluation.ResumeEvalJob(evaluation_pb2.ResumeEvalJobRequest(job_id="job"))
        await world.watched("job")
        job = await world.evaluation.GetEvalJob(evaluation_pb2.GetEvalJobRequest(job_id="job"))
        assert (job.state, "two versions are not mixed" in job.reason) == (FAILED, True)
