"""Real runs and eval jobs that objects ask for, through a stand-in API server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from orchestrated.world import Backends, World, lines, math_task, refused, world
from standin_api.objects import EVAL_JOBS, TRAINING_RUNS, custom_resource
from standin_api.server import StandInApi
from troupe.v1 import evaluation_pb2, training_pb2
from troupe_orchestrator.custom_resources import status_writer

pytestmark = pytest.mark.asyncio(loop_scope="session")

TASKS = [math_task(f"t{number}") for number in range(4)]
EVENTS = "/apis/events.k8s.io/v1/namespaces/troupe/events"
Open = Callable[[], Any]


@pytest.fixture
def opened(
    standin: StandInApi, tmp_path: Path, stand_ins: Backends, sandbox: str, monkeypatch: pytest.MonkeyPatch
) -> Open:
    """Orchestrators on one store that take objects for requests, one after another."""
    monkeypatch.setattr(status_writer, "WRITE_SECONDS", 0.05)
    kubeconfig = standin.kubeconfig(tmp_path)
    return lambda: world(tmp_path, stand_ins, sandbox, True, kubeconfig=kubeconfig, custom_resources=True)


def apply(standin: StandInApi, one: World, name: str = "one", **config: Any) -> str:
    spec = {"config": yaml.safe_load(one.config(TASKS, **config)), "queue": True}
    return str(standin.put(TRAINING_RUNS, custom_resource(name, **spec))["metadata"]["uid"])


def desire(standin: StandInApi, desired: str) -> None:
    found = standin.objects[TRAINING_RUNS]["one"]
    standin.put(TRAINING_RUNS, {**found, "spec": {**found["spec"], "desiredState": desired}})


async def phase(standin: StandInApi, wanted: str, name: str = "one", collection: str = TRAINING_RUNS) -> dict[str, Any]:
    """The status, once it is in a phase for the spec as it is."""
    async with asyncio.timeout(60):
        while True:
            found = standin.objects[collection][name]
            status: dict[str, Any] = found.get("status", {})
            generation = found["metadata"]["generation"]
            if (status.get("phase"), status.get("observedGeneration")) == (wanted, generation):
                return status
            await asyncio.sleep(0.02)


async def test_a_training_run_trains_to_its_end_and_says_so(standin: StandInApi, opened: Open) -> None:
    async with opened() as one:
        uid = apply(standin, one)
        status = await phase(standin, "Succeeded")
        run = await one.get_run(uid)
    assert run.state == training_pb2.RUN_STATE_SUCCEEDED
    assert (status["committedSteps"], status["display"]["step"]) == (2, "2/2")
    assert status["display"]["policy"] == "scripted@start:2"
    assert status["display"]["reward"] == f"{run.last_metrics['reward_executor']:.3f}"
    complete = next(each for each in status["conditions"] if each["type"] == "Complete")
    assert complete["status"] == "True"
    written = [each for each in standin.objects[EVENTS].values() if each["regarding"]["uid"] == uid]
    assert {each["regarding"]["kind"] for each in written} == {"TrainingRun"}
    assert [each["reason"] for each in written] == ["StageStarted", "Succeeded"]


async def test_an_object_steers_its_run_and_calls_do_not(standin: StandInApi, opened: Open) -> None:
    async with opened() as one:
        uid = apply(standin, one, steps=60, stages=[{"train": "both", "steps": 1}])
        await phase(standin, "Running")
        with refused("FAILED_PRECONDITION", "TrainingRun troupe/one", "desiredState"):
            await one.training.PauseRun(training_pb2.PauseRunRequest(run_id=uid))
        desire(standin, "Paused")
        paused = await phase(standin, "Paused")
        with refused("FAILED_PRECONDITION", "TrainingRun troupe/one"):
            await one.training.ResumeRun(training_pb2.ResumeRunRequest(run_id=uid))
        desire(standin, "Running")
        await phase(standin, "Running")
        run = await one.training.CancelRun(training_pb2.CancelRunRequest(run_id=uid))
        await phase(standin, "Cancelled")
        assert run.committed_steps >= paused["committedSteps"]


async def test_a_run_goes_on_over_a_restart_and_ends_when_its_object_is_deleted(
    standin: StandInApi, opened: Open
) -> None:
    async with opened() as one:
        uid = apply(standin, one, steps=500, stages=[{"train": "both", "steps": 1}])
        await phase(standin, "Running")
    async with opened() as one:
        assert (await one.get_run(uid)).state == training_pb2.RUN_STATE_RUNNING
        assert len((await one.training.ListRuns(training_pb2.ListRunsRequest())).runs) == 1
    standin.delete(TRAINING_RUNS, "one")
    async with opened() as one:
        async with asyncio.timeout(30):
            while (await one.get_run(uid)).state != training_pb2.RUN_STATE_CANCELLED:
                await asyncio.sleep(0.02)


async def test_a_run_that_pauses_by_itself_says_why_in_one_word(
    standin: StandInApi, opened: Open, stand_ins: Backends
) -> None:
    stand_ins.learner.gradients_are_finite = False
    async with opened() as one:
        apply(standin, one)
        status = await phase(standin, "Paused")
    paused = next(each for each in status["conditions"] if each["type"] == "Paused")
    assert (paused["status"], paused["reason"]) == ("True", "NonFiniteGradient")
    assert "the gradient's norm is nan" in paused["message"]


async def test_the_api_server_is_asked_once_for_a_step_at_most(standin: StandInApi, opened: Open) -> None:
    async with opened() as one:
        uid = apply(standin, one, steps=6, stages=[{"train": "both", "steps": 6}])
        await phase(standin, "Succeeded")
        patches = [body for name, body in standin.status_patches if name == "one"]
        asked = [path for method, path, _ in standin.requests if path.startswith(TRAINING_RUNS) and method != "PATCH"]
        assert (await one.get_run(uid)).committed_steps == 6
    # When it began, for each step, and when it ended.
    assert len(patches) <= 8
    # A list and a watch.
    assert len(asked) == 2


async def test_an_eval_job_is_run_and_its_accuracy_shown(standin: StandInApi, opened: Open) -> None:
    async with opened() as one:
        spec = {"dataset": {"inline": lines(*TASKS)}, "samples": 2, "mode": "SingleAgent"}
        uid = standin.put(EVAL_JOBS, custom_resource("sums", **spec))["metadata"]["uid"]
        status = await phase(standin, "Succeeded", "sums", EVAL_JOBS)
        job = await one.evaluation.GetEvalJob(evaluation_pb2.GetEvalJobRequest(job_id=uid))
        with refused("FAILED_PRECONDITION", "EvalJob troupe/sums"):
            await one.evaluation.ResumeEvalJob(evaluation_pb2.ResumeEvalJobRequest(job_id=uid))
    assert (status["itemsDone"], status["itemsTotal"]) == (8, 8)
    assert status["display"]["accuracy"] == f"{job.summary.success:.3f}"
    assert status["executorVersion"] == {"lineage": "start", "number": 0}


async def test_a_config_that_a_call_would_be_refused_for_is_refused_by_the_same_words(
    standin: StandInApi, opened: Open
) -> None:
    async with opened() as one:
        apply(standin, one, dataset={"train": "/no/such/file"})
        status = await phase(standin, "Failed")
        assert (await one.training.ListRuns(training_pb2.ListRunsRequest())).runs == []
    assert "spec.config.dataset.train: /no/such/file: No such file or directory" in status["reason"]
