"""Runs whose engines come and go while they are under way, found through a stand-in API server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from orchestrated.engine import Engine, start_engine
from orchestrated.world import Backends, World, eval_request, math_task, world
from standin_api.objects import PODS, SLICES, endpoint, endpoint_slice, pod, unschedulable
from standin_api.server import StandInApi
from troupe.v1 import common_pb2, evaluation_pb2, policy_pb2, training_pb2
from troupe_contracts.identity import NOBODY
from troupe_orchestrator.fleet import PolicyFleet, replica_at
from troupe_orchestrator.kubernetes import cluster, notices
from troupe_orchestrator.training.weights import load_weights

pytestmark = pytest.mark.asyncio(loop_scope="session")

TASKS = [math_task(f"t{number}") for number in range(4)]
DEPLOYMENTS = "/apis/apps/v1/namespaces/troupe/deployments"
EVENTS = "/apis/events.k8s.io/v1/namespaces/troupe/events"


class Deployed:
    """Engines, and what the API server says of their pods."""

    def __init__(self, api: StandInApi) -> None:
        self.api = api
        self.engines: dict[str, Engine] = {}
        self.before_turn: Callable[[str], Awaitable[object]] | None = None
        """Awaited in each turn, with the name of the pod that plays it."""

    async def start(self, name: str, ready: bool = True) -> Engine:
        """A pod starts, with the weights that its image has."""

        async def before_turn() -> None:
            if self.before_turn is not None:
                await self.before_turn(name)

        engine = await start_engine(before_turn)
        self.engines[name] = engine
        self.say(name, ready)
        return engine

    def say(self, name: str, ready: bool = True, terminating: bool = False) -> None:
        """What the endpoint controller says of a pod."""
        host, _, port = self.engines[name].running.target.rpartition(":")
        for service in ("executor", "designer"):
            listed = endpoint(host, name, ready, terminating)
            self.api.put(SLICES, endpoint_slice(service, listed, name=f"{service}-{name}", port=int(port)))

    def remove(self, name: str) -> None:
        """The endpoint controller has seen that a pod is gone."""
        for service in ("executor", "designer"):
            self.api.delete(SLICES, f"{service}-{name}")

    async def kill(self, name: str) -> None:
        """A pod is gone, in the middle of its turns; the endpoint controller has not seen it."""
        await self.engines.pop(name).running.server.stop(None)


@pytest_asyncio.fixture(loop_scope="session")
async def deployed(standin: StandInApi) -> AsyncIterator[Deployed]:
    found = Deployed(standin)
    yield found
    for engine in found.engines.values():
        await engine.running.drain(0)


@contextlib.asynccontextmanager
async def opened(
    deployed: Deployed, tmp_path: Path, stand_ins: Backends, sandbox: str, **settings: object
) -> AsyncIterator[World]:
    """An orchestrator whose engines are found through the API server."""
    given = {"executor": "k8s:///executor", "designer": "k8s:///designer", "learner": True, **settings}
    async with world(tmp_path, stand_ins, sandbox, kubeconfig=deployed.api.kubeconfig(tmp_path), **given) as one:  # type: ignore[arg-type]
        yield one


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong in the cluster is told without waiting whether it passes."""
    monkeypatch.setattr(notices, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(cluster, "_LOOK_SECONDS", 0.02)


def metrics(events: list[training_pb2.RunEvent], name: str) -> list[float]:
    return [event.step_committed.metrics[name] for event in events if event.WhichOneof("event") == "step_committed"]


def reasons(events: list[training_pb2.RunEvent]) -> list[str]:
    return [event.condition.reason for event in events if event.WhichOneof("event") == "condition"]


async def told(opened: World, reason: str) -> training_pb2.Condition:
    """The first condition of the run with a reason."""
    async for event in opened.training.WatchRun(training_pb2.WatchRunRequest(run_id="run"), timeout=60):
        if event.WhichOneof("event") == "condition" and event.condition.reason == reason:
            return event.condition
    raise AssertionError(f"the run ended without {reason}")


async def test_one_that_comes_late_gets_the_weights_before_its_first_turn_and_takes_over(
    deployed: Deployed, tmp_path: Path, stand_ins: Backends, sandbox: str
) -> None:
    first = await deployed.start("a")
    async with opened(deployed, tmp_path, stand_ins, sandbox) as one:
        replaced = asyncio.Event()

        async def replace(name: str) -> None:
            if name == "a" and first.policy.weights.version.number == 1 and not replaced.is_set():
                replaced.set()
                await deployed.start("b")
                deployed.say("a", terminating=True)

        deployed.before_turn = replace
        events = await one.run(one.config(TASKS, steps=3, stages=[{"train": "both", "steps": 3}]))
        run = await one.get_run()
    assert run.state == training_pb2.RUN_STATE_SUCCEEDED, run.reason
    second = deployed.engines["b"]
    assert second.versions
    assert 0 not in second.versions
    # The turns that were under way where the pod was to end have ended as they would have.
    assert metrics(events, "success") == [0.5, 0.5, 0.5]
    assert metrics(events, "tasks_dropped") == [0.0, 0.0, 0.0]
    # Of the third step nothing was asked of the pod that ends.
    assert 2 not in first.versions


async def test_a_pod_that_is_killed_in_its_turns_costs_no_task_and_no_reward(
    deployed: Deployed, tmp_path: Path, stand_ins: Backends, sandbox: str
) -> None:
    await deployed.start("a")
    await deployed.start("b")
    async with opened(deployed, tmp_path, stand_ins, sandbox) as one:
        killed: list[str] = []

        async def kill(name: str) -> None:
            if not killed:
                killed.append(name)
                await deployed.kill(name)

        deployed.before_turn = kill
        events = await one.run(one.config(TASKS))
        run = await one.get_run()
    assert killed
    assert run.state == training_pb2.RUN_STATE_SUCCEEDED, run.reason
    assert metrics(events, "success") == [0.5, 0.5]
    assert metrics(events, "tasks_dropped") == [0.0, 0.0]


async def test_without_any_engine_a_step_waits_and_says_so_and_goes_on_with_the_next(
    deployed: Deployed, tmp_path: Path, stand_ins: Backends, sandbox: str, at_once: None
) -> None:
    await deployed.start("a")
    async with opened(deployed, tmp_path, stand_ins, sandbox, outage_seconds=0.05) as one:

        async def scale_to_nothing(name: str) -> None:
            deployed.before_turn = None
            deployed.say(name, terminating=True)
            deployed.remove(name)
            await deployed.kill(name)

        deployed.before_turn = scale_to_nothing
        request = training_pb2.CreateRunRequest(run_id="run", config=one.config(TASKS))
        await one.training.CreateRun(request)
        condition = await told(one, "NoExecutors")
        assert condition.message.startswith("Service executor has no endpoint")
        # Longer than an outage of members that do not serve would be put up with.
        await asyncio.sleep(0.5)
        assert (await one.get_run()).state == training_pb2.RUN_STATE_RUNNING
        await deployed.start("b")
        events = await one.run_events()
        run = await one.get_run()
    assert run.state == training_pb2.RUN_STATE_SUCCEEDED, run.reason
    assert metrics(events, "tasks_dropped") == [0.0, 0.0]
    assert metrics(events, "success") == [0.5, 0.5]
    assert "TaskDropped" not in reasons(events)


async def test_a_run_may_be_asked_for_while_there_is_no_engine(
    deployed: Deployed, tmp_path: Path, stand_ins: Backends, sandbox: str, at_once: None
) -> None:
    await deployed.start("a")
    async with opened(deployed, tmp_path, stand_ins, sandbox) as one:
        deployed.remove("a")
        await deployed.kill("a")
        request = training_pb2.CreateRunRequest(run_id="run", config=one.config(TASKS))
        await one.training.PlanRun(training_pb2.PlanRunRequest(config=request.config))
        await one.training.CreateRun(request)
        await told(one, "NoExecutors")
        assert (await one.get_run()).state == training_pb2.RUN_STATE_RUNNING
        await deployed.start("b")
        events = await one.run_events()
        run = await one.get_run()
    assert run.state == training_pb2.RUN_STATE_SUCCEEDED, run.reason
    assert metrics(events, "success") == [0.5, 0.5]


@pytest.mark.parametrize("removed", [True, False])
async def test_an_eval_job_may_be_asked_for_while_there_is_no_engine(
    deployed: Deployed, tmp_path: Path, stand_ins: Backends, sandbox: str, removed: bool
) -> None:
    await deployed.start("a")
    async with opened(deployed, tmp_path, stand_ins, sandbox) as one:
        # Whether or not the orchestrator has seen it before the job begins.
        if removed:
            deployed.remove("a")
        await deployed.kill("a")
        job = await one.evaluation.CreateEvalJob(eval_request(*TASKS))
        # Long enough for a job that would not wait.
        await asyncio.sleep(0.5)
        if not removed:
            deployed.remove("a")
        await deployed.start("b")
        await one.watched(job.job_id)
        job = await one.evaluation.GetEvalJob(evaluation_pb2.GetEvalJobRequest(job_id=job.job_id))
    assert job.state == evaluation_pb2.EVAL_STATE_SUCCEEDED, job.reason
    assert (job.items_done, job.items_faulted) == (len(TASKS), 0)


async def test_after_a_restart_without_a_run_one_that_comes_has_the_trained_weights(
    deployed: Deployed, tmp_path: Path, stand_ins: Backends, sandbox: str
) -> None:
    await deployed.start("a")
    async with opened(deployed, tmp_path, stand_ins, sandbox) as one:
        await one.run(one.config(TASKS))
    async with opened(deployed, tmp_path, stand_ins, sandbox):
        second = await deployed.start("b")
        deployed.say("a", terminating=True)
        deployed.remove("a")
        await deployed.kill("a")
        async with asyncio.timeout(30):
            while second.policy.weights.version.number != 2:
                await asyncio.sleep(0.01)
    assert second.policy.weights.committed == [2]


async def test_a_pod_that_no_node_takes_is_told_of_in_the_run(
    deployed: Deployed, tmp_path: Path, stand_ins: Backends, sandbox: str, at_once: None
) -> None:
    await deployed.start("a")
    async with opened(deployed, tmp_path, stand_ins, sandbox) as one:
        heard = asyncio.Event()

        async def wait(name: str) -> None:
            await heard.wait()

        deployed.before_turn = wait
        await one.training.CreateRun(training_pb2.CreateRunRequest(run_id="run", config=one.config(TASKS)))
        message = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."
        deployed.api.put(PODS, pod("learner-1", "learner", unschedulable(message)))
        condition = await told(one, "Unschedulable")
        heard.set()
        await one.run_events()
    assert condition.message == "learner-1 Pending: insufficient nvidia.com/gpu"
    assert condition.remedy


async def test_what_was_wrong_before_a_run_began_and_still_is_stands_in_its_events_once(
    deployed: Deployed, tmp_path: Path, stand_ins: Backends, sandbox: str, at_once: None, monkeypatch
) -> None:
    await deployed.start("a")
    heard: list[str] = []
    monkeypatch.setattr(cluster.logger, "warning", lambda *_, reason="", **__: heard.append(reason))
    async with opened(deployed, tmp_path, stand_ins, sandbox) as one:
        message = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."
        deployed.api.put(PODS, pod("learner-1", "learner", unschedulable(message)))
        async with asyncio.timeout(30):
            while "Unschedulable" not in heard:
                await asyncio.sleep(0.01)
        events = await one.run(one.config(TASKS))
    assert reasons(events) == ["Unschedulable"]


async def test_training_goes_on_while_the_api_server_is_away(
    deployed: Deployed, tmp_path: Path, stand_ins: Backends, sandbox: str, at_once: None
) -> None:
    await deployed.start("a")
    async with opened(deployed, tmp_path, stand_ins, sandbox) as one:
        heard = asyncio.Event()

        async def wait(name: str) -> None:
            await heard.wait()

        deployed.before_turn = wait
        await one.training.CreateRun(training_pb2.CreateRunRequest(run_id="run", config=one.config(TASKS)))
        deployed.api.away = True
        deployed.api.cut_watches()
        await told(one, "ApiServerAway")
        heard.set()
        events = await one.run_events()
        assert (await one.get_run()).state == training_pb2.RUN_STATE_SUCCEEDED
    assert metrics(events, "tasks_dropped") == [0.0, 0.0]


async def test_one_that_comes_while_weights_are_loaded_is_brought_to_them_too(deployed: Deployed) -> None:
    first, late = await deployed.start("a"), await deployed.start("b")
    fleet = PolicyFleet([], "executor")
    fleet.watched = True
    fleet.join(replica_at(first.running.target, NOBODY))
    await fleet.connect()
    joined = replica_at(late.running.target, NOBODY)
    stub = fleet.replicas()[0].stub
    loads = stub.StageWeights

    async def stage(request: policy_pb2.StageWeightsRequest, **options: float) -> policy_pb2.StageWeightsResponse:
        fleet.join(joined)
        while not fleet.in_rotation(joined):
            await asyncio.sleep(0.01)
        return await loads(request, **options)

    stub.StageWeights = stage  # type: ignore[method-assign, assignment]
    version = common_pb2.PolicyVersion(lineage="start", number=1)
    manifest = policy_pb2.WeightManifest(policy_id="scripted", version=version)
    await load_weights(fleet, manifest, policy_pb2.WeightSource(), common_pb2.Fence(), [], 0.1)
    assert not fleet.in_rotation(joined)
    while not fleet.in_rotation(joined):
        await asyncio.sleep(0.01)
    assert late.policy.weights.version == version
    await fleet.close()


async def test_nothing_is_asked_of_the_api_server_by_a_step(
    deployed: Deployed, tmp_path: Path, stand_ins: Backends, sandbox: str
) -> None:
    await deployed.start("a")
    async with opened(deployed, tmp_path, stand_ins, sandbox) as one:
        deployed.api.wait_until_watched(PODS)
        before = len(deployed.api.requests)
        await one.run(one.config(TASKS, steps=4, stages=[{"train": "both", "steps": 4}]))
        assert deployed.api.requests[before:] == []


async def test_stages_and_ends_of_runs_are_events_of_the_orchestrators_workload(
    deployed: Deployed, tmp_path: Path, stand_ins: Backends, sandbox: str
) -> None:
    owner = {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "orchestrator", "uid": "owner", "controller": True}
    deployed.api.put(PODS, pod(socket.gethostname(), "orchestrator", ownerReferences=[owner]))
    await deployed.start("a")
    async with opened(deployed, tmp_path, stand_ins, sandbox) as one:
        stages = [{"train": "executor", "steps": 2}, {"train": "designer", "steps": 1}]
        await one.run(one.config(TASKS, steps=3, stages=stages))
    written = sorted(deployed.api.objects[EVENTS].values(), key=lambda each: int(each["metadata"]["resourceVersion"]))
    assert [each["reason"] for each in written] == ["StageStarted", "StageStarted", "Succeeded"]
    assert written[1]["note"] == "run run: stage 2, designer, from step 3"
    assert {each["regarding"]["kind"] for each in written} == {"StatefulSet"}
    assert {each["regarding"]["uid"] for each in written} == {"owner"}


async def test_what_keeps_a_pod_from_serving_is_an_event_while_no_run_is_under_way(
    deployed: Deployed, tmp_path: Path, stand_ins: Backends, sandbox: str, at_once: None
) -> None:
    deployed.api.put(PODS, pod(socket.gethostname(), "orchestrator"))
    await deployed.start("a")
    async with opened(deployed, tmp_path, stand_ins, sandbox):
        deployed.api.put(PODS, pod("learner-1", "learner", unschedulable("0/1 nodes: insufficient nvidia.com/gpu")))
        while not (written := list(deployed.api.objects.get(EVENTS, {}).values())):
            await asyncio.sleep(0.01)
    assert [each["reason"] for each in written] == ["Unschedulable"]
    assert "learner-1" in written[0]["note"]
    assert "insufficient nvidia.com/gpu" in written[0]["note"]
    assert written[0]["regarding"]["name"] == socket.gethostname()


async def test_replicas_are_set_by_what_is_trained_and_when_nothing_is(
    deployed: Deployed, tmp_path: Path, stand_ins: Backends, sandbox: str
) -> None:
    for name in ("executor", "designer", "sandbox"):
        deployed.api.put(DEPLOYMENTS, {"metadata": {"name": name}, "spec": {"replicas": 1}})
    await deployed.start("a")
    plan = tmp_path / "replicas.yaml"
    plan.write_text("executor: {executor: 4}\ndesigner: {executor: 2, designer: 3}\nidle: {executor: 1, designer: 1}\n")
    async with opened(deployed, tmp_path, stand_ins, sandbox, scaling="stage", replicas=plan) as one:
        stages = [{"train": "executor", "steps": 1}, {"train": "designer", "steps": 1}]
        await one.run(one.config(TASKS, stages=stages))
        while len(_scaled(deployed.api)) < 7:
            await asyncio.sleep(0.01)
    assert _scaled(deployed.api) == [
        *(("executor", 1), ("designer", 1)),
        ("executor", 4),
        *(("executor", 2), ("designer", 3)),
        *(("executor", 1), ("designer", 1)),
    ]


async def test_replicas_stay_while_the_next_run_is_queued(
    deployed: Deployed, tmp_path: Path, stand_ins: Backends, sandbox: str
) -> None:
    deployed.api.put(DEPLOYMENTS, {"metadata": {"name": "executor"}, "spec": {"replicas": 1}})
    await deployed.start("a")
    plan = tmp_path / "replicas.yaml"
    plan.write_text("executor: {executor: 4}\ndesigner: {executor: 2}\nidle: {executor: 1}\n")
    async with opened(deployed, tmp_path, stand_ins, sandbox, scaling="stage", replicas=plan) as one:
        queued = asyncio.Event()

        async def wait(name: str) -> None:
            await queued.wait()

        deployed.before_turn = wait
        for run_id, trains in (("first", "executor"), ("second", "executor"), ("third", "designer")):
            config = one.config(TASKS, steps=1, stages=[{"train": trains, "steps": 1}])
            await one.training.CreateRun(training_pb2.CreateRunRequest(run_id=run_id, config=config, queue=True))
        queued.set()
        for run_id in ("first", "second", "third"):
            await one.run_events(run_id)
            assert (await one.get_run(run_id)).state == training_pb2.RUN_STATE_SUCCEEDED
        while _scaled(deployed.api)[-2:] != [("executor", 2), ("executor", 1)]:
            await asyncio.sleep(0.01)
    assert _scaled(deployed.api) == [("executor", 1), ("executor", 4), ("executor", 2), ("executor", 1)]


async def test_replicas_are_those_of_no_run_once_the_queued_one_cannot_start(
    deployed: Deployed, tmp_path: Path, stand_ins: Backends, sandbox: str
) -> None:
    deployed.api.put(DEPLOYMENTS, {"metadata": {"name": "executor"}, "spec": {"replicas": 1}})
    await deployed.start("a")
    plan = tmp_path / "replicas.yaml"
    plan.write_text("both: {executor: 4}\nidle: {executor: 1}\n")
    async with opened(deployed, tmp_path, stand_ins, sandbox, scaling="stage", replicas=plan) as one:
        queued = asyncio.Event()

        async def wait(name: str) -> None:
            await queued.wait()

        deployed.before_turn = wait
        config = one.config(TASKS)
        for run_id in ("first", "second"):
            await one.training.CreateRun(training_pb2.CreateRunRequest(run_id=run_id, config=config, queue=True))
        (tmp_path / "train.jsonl").unlink()
        queued.set()
        await one.run_events("first")
        while len(_scaled(deployed.api)) < 3:
            await asyncio.sleep(0.01)
        assert (await one.get_run("second")).state == training_pb2.RUN_STATE_PAUSED
    assert _scaled(deployed.api) == [("executor", 1), ("executor", 4), ("executor", 1)]


def _scaled(api: StandInApi) -> list[tuple[str, int]]:
    """What was set, in order."""
    api_history = [each for each in api.history if each[1] == "MODIFIED" and each[2] == DEPLOYMENTS]
    return [(found["metadata"]["name"], found["spec"]["replicas"]) for _, _, _, found in api_history]
