"""The failure matrix: whatever happens to a cluster in the middle of a step, the run goes on by itself, no fault is
learned from, and the weights are those of the sealed batches.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest
from deployed.containers import signal_ranks
from deployed.installation import NAMESPACE, OVERLAY, WORKLOADS, Installation, Variant, installed, varied
from deployed.runs import ClusterRun, begun, running
from rendered.kubectl import kubectl
from rendered.overlays import render_folder
from troupe.v1 import sandbox_pb2, sandbox_pb2_grpc
from troupe_contracts.channel import connect
from troupe_contracts.identity import own

API_AWAY = os.environ.get("TROUPE_TEST_API_AWAY", "")
"""A command of the shell; it returns when the API server is back. Any cluster has another."""
AWAY_SECONDS = 300.0
"""That long it has to have been away."""
SECOND_TAG = os.environ.get("TROUPE_TEST_SECOND_TAG", "")
"""Under which the nodes find each service's image too: localhost/troupe-SERVICE."""
IN_ROLLOUTS = ("executor", "designer", "sandbox")
"""These have work while a step is rolled out: their pods have to end in it."""

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2400)]


def kill(installation: Installation, component: str) -> None:
    """Its pod is gone at once, as if its node had failed."""
    kubectl(
        "-n", NAMESPACE, "delete", "pod", installation.pod(component), "--grace-period=0", "--force", "--wait=false"
    )


def end(installation: Installation, component: str) -> None:
    """Its pod is asked to end, as a drain does."""
    kubectl("-n", NAMESPACE, "delete", "pod", installation.pod(component), "--wait=false")


def scale(component: str, replicas: int) -> None:
    kubectl("-n", NAMESPACE, "scale", WORKLOADS[component], f"--replicas={replicas}")


async def nothing_is_given_up(run: ClusterRun) -> None:
    assert run.record.dropped() == []


async def no_turn_failed(run: ClusterRun) -> None:
    assert [told for told in await run.conditions() if told.startswith("InfrastructureFault")] == []
    await nothing_is_given_up(run)


async def ranks_of_a_new_process(installation: Installation) -> None:
    """Where the learner's process starts again, its generations of ranks count from 1 again."""
    assert (await installation.learner()).generation == 1


@pytest.mark.parametrize("component", ["executor", "designer", "sandbox", "learner", "orchestrator", "postgres"])
async def test_a_pod_that_dies_in_a_step_costs_nothing_but_time(installation: Installation, component: str) -> None:
    async with running(installation) as run:
        kill_it, lands = partial(kill, installation, component), ("rolling",) if component in IN_ROLLOUTS else ()
        await run.survives(f"{component}: pod killed", kill_it, ended=component, lands=lands)
        if component == "learner":
            await ranks_of_a_new_process(installation)
        await run.end()
        await nothing_is_given_up(run)


@pytest.mark.parametrize("component", IN_ROLLOUTS)
async def test_a_pod_that_is_drained_fails_no_turn(installation: Installation, component: str) -> None:
    async with running(installation) as run:
        end_it = partial(end, installation, component)
        await run.survives(f"{component}: pod drained", end_it, ended=component, lands=("rolling",))
        await run.end()
        await no_turn_failed(run)


@pytest.mark.parametrize("state", ["trained", "synced"])
async def test_the_orchestrator_dies_soon_after_each_phase_began(installation: Installation, state: str) -> None:
    async with running(installation) as run:
        await run.survives(
            f"orchestrator: pod killed once a step was {state}",
            partial(kill, installation, "orchestrator"),
            state,
            ended="orchestrator",
        )
        await run.end()
        await nothing_is_given_up(run)


async def test_the_orchestrator_dies_while_the_learner_trains(installation: Installation) -> None:
    async with running(installation) as run:
        kill_it = partial(kill, installation, "orchestrator")
        fault = "orchestrator: pod killed once a step was sealed"
        await run.survives(fault, kill_it, "sealed", ended="orchestrator", lands=("sealed",), held=True)
        await run.end()
        await nothing_is_given_up(run)


async def test_the_learner_dies_while_it_trains(installation: Installation) -> None:
    async with running(installation) as run:
        kill_it = partial(kill, installation, "learner")
        fault = "learner: pod killed once a step was sealed"
        await run.survives(fault, kill_it, "sealed", ended="learner", lands=("sealed",), held=True)
        await ranks_of_a_new_process(installation)
        await run.end()
        await nothing_is_given_up(run)


async def test_a_rank_of_the_learner_dies_while_it_trains(installation: Installation) -> None:
    async with running(installation) as run:
        before = (await installation.learner()).generation
        kill_it = partial(signal_ranks, installation, "SIGKILL")
        await run.survives("learner: rank killed", kill_it, "sealed", lands=("sealed",), held=True)
        await run.formed_ranks_anew(before)
        await run.end()
        await nothing_is_given_up(run)


# Many small processes, so that the kernel chooses the service, whose score they have raised.
MEMORY_HOG = """
import os, time
open('/proc/1/oom_score_adj', 'w').write('1000')
while True:
    if os.fork() == 0:
        held = b'x' * (1 << 26)
        time.sleep(600)
    time.sleep(0.02)
"""


async def is_named_and_starts_again(
    installation: Installation, component: str, *states: str, held: bool = False
) -> None:
    inside = installation.inside(component)[1:]
    async with running(installation) as run:
        exhaust = partial(kubectl, *inside, "python", "-c", MEMORY_HOG, check=False)
        await run.survives(f"{component}: out of memory", exhaust, *states, ended=component, lands=states, held=held)
        (pod,) = installation.pods(component)
        (status,) = pod["status"]["containerStatuses"]
        assert status["lastState"]["terminated"]["reason"] == "OOMKilled"
        assert any("OOMKilled" in condition for condition in await run.conditions())
        await run.end()
        await nothing_is_given_up(run)


async def test_an_executor_that_the_kernel_kills_for_want_of_memory_is_named_and_starts_again(
    installation: Installation,
) -> None:
    await is_named_and_starts_again(installation, "executor")


async def test_so_is_the_learner_while_it_trains(installation: Installation) -> None:
    await is_named_and_starts_again(installation, "learner", "sealed", held=True)
    await ranks_of_a_new_process(installation)


async def test_so_is_the_sandbox(installation: Installation) -> None:
    small = render_folder(Path(OVERLAY))
    (container,) = small.one("Deployment", "sandbox")["spec"]["template"]["spec"]["containers"]
    # What it is allowed as it is would take all of a small node's memory.
    container["resources"]["limits"]["memory"] = "4Gi"
    container["env"] = [{"name": f"TROUPE_{pool}_SLOTS", "value": "2"} for pool in ("WORKFLOW", "TEST", "TOOL")]
    with varied(installation, small, Variant()):
        await is_named_and_starts_again(installation, "sandbox")


def restarts(installation: Installation) -> dict[str, int]:
    """Of the sandbox's container in each pod."""
    pods = installation.pods("sandbox")
    return {pod["metadata"]["name"]: pod["status"]["containerStatuses"][0]["restartCount"] for pod in pods}


MEMORY_EATER = "held = []\nwhile True:\n    held.append(b'x' * (1 << 24))"


async def test_programs_that_eat_memory_end_alone(installation: Installation) -> None:
    request = sandbox_pb2.RunTestsRequest(
        job_id="eats-memory",
        solution=MEMORY_EATER,
        stdin_tests=sandbox_pb2.StdinTests(cases=[sandbox_pb2.StdinCase()] * 40, checker=sandbox_pb2.CHECKER_TOKENS),
    )
    async with running(installation, steps=5) as run:
        before = restarts(installation)
        await run.at("rolling")
        async with connect(installation.target("sandbox"), own()) as channel:
            answers = [answer async for answer in sandbox_pb2_grpc.SandboxStub(channel).RunTests(request)]
        verdicts = {answer.case_result.verdict for answer in answers if answer.HasField("case_result")}
        assert verdicts == {sandbox_pb2.VERDICT_MEMORY_LIMIT}
        await run.finish()
        await no_turn_failed(run)
        assert restarts(installation) == before


async def every_engine_has_the_updates(installation: Installation, run: ClusterRun, engines: int) -> None:
    """Two steps later those that are sealed now are in the weights of each."""
    updates = len(run.record.sealed())
    await run.committed(run.record.committed() + 2)
    served = [await installation.updates_of(pod["metadata"]["name"]) for pod in installation.pods("executor")]
    assert len(served) == engines
    assert min(served) >= updates, f"{served} of {updates} updates"


async def test_executors_come_and_go_and_none_is_left_for_a_while(installation: Installation) -> None:
    def none_for_a_while() -> None:
        scale("executor", 0)
        time.sleep(15)
        scale("executor", 1)

    small = render_folder(Path(OVERLAY))
    (container,) = small.one("Deployment", "executor")["spec"]["template"]["spec"]["containers"]
    container["resources"]["requests"]["cpu"] = "100m"  # three of them are to fit on a node of two cores
    with varied(installation, small, Variant()):
        async with running(installation) as run:
            await run.survives("executor: scaled to 0, back after 15 s", none_for_a_while)
            assert any(condition.startswith("NoExecutors") for condition in await run.conditions())
            await run.end()
            # Turns that are under way end at the old pod, the next ones wait for a member: neither is an attempt.
            await no_turn_failed(run)
        async with running(installation) as run:
            await run.survives("executor: scaled to 3", partial(scale, "executor", 3))
            await every_engine_has_the_updates(installation, run, engines=3)
            await run.survives("executor: scaled to 1", partial(scale, "executor", 1))
            await no_turn_failed(run)


@pytest.mark.parametrize("component", ["executor", "designer", "sandbox", "learner", "orchestrator"])
async def test_a_service_is_rolled_in_a_run(installation: Installation, component: str) -> None:
    restart = partial(kubectl, "-n", NAMESPACE, "rollout", "restart", WORKLOADS[component])
    async with running(installation) as run:
        await run.survives(f"{component}: rollout restart", restart, ended=component)
        await run.end()
        await no_turn_failed(run)


def set_image(component: str, image: str) -> None:
    kubectl("-n", NAMESPACE, "set", "image", WORKLOADS[component], f"{component}={image}")


def undo(component: str) -> None:
    kubectl("-n", NAMESPACE, "rollout", "undo", WORKLOADS[component])


def image_of(installation: Installation, component: str) -> str:
    (pod,) = installation.pods(component)
    return next(str(each["image"]) for each in pod["spec"]["containers"] if each["name"] == component)


@pytest.mark.skipif(not SECOND_TAG, reason="TROUPE_TEST_SECOND_TAG is no tag that localhost/troupe-SERVICE has as well")
@pytest.mark.parametrize("component", ["executor", "designer", "sandbox", "learner", "orchestrator"])
async def test_a_service_gets_another_image_in_a_run_and_its_own_again(
    installation: Installation, component: str
) -> None:
    own_image, other = image_of(installation, component), f"localhost/troupe-{component}:{SECOND_TAG}"
    assert own_image != other, "TROUPE_TEST_SECOND_TAG is the tag that is deployed; name another"
    async with running(installation) as run:
        try:
            # Each returns when `rollout status` does, and a step has gone through after it.
            await run.survives(f"{component}: set image", partial(set_image, component, other), ended=component)
            assert image_of(installation, component) == other
            await run.survives(f"{component}: rollout undo", partial(undo, component), ended=component)
            assert image_of(installation, component) == own_image
        finally:
            set_image(component, own_image)
        await run.end()
        await no_turn_failed(run)


@pytest.mark.parametrize("component", ["designer", "sandbox"])
async def test_an_image_that_does_not_start_leaves_the_old_replica_serving(
    installation: Installation, component: str
) -> None:
    async with running(installation) as run:
        await run.at("rolling")
        old = installation.pod(component)
        set_image(component, f"localhost/troupe-{component}:none")
        try:
            told = await run.told("ImagePullBackOff", "ErrImagePull")
            # A step begins and goes through while the new pod cannot start.
            await run.committed(run.record.newest().number + 1)
            (new,) = {pod["metadata"]["name"] for pod in installation.pods(component)} - {old}
        finally:
            undo(component)
        assert any(f": {new} " in condition for condition in told), told
        await run.end()
        await no_turn_failed(run)


async def test_a_node_is_drained_and_comes_back(installation: Installation) -> None:
    node = installation.pods("executor")[0]["spec"]["nodeName"]

    def drained() -> None:
        drain = ("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=300s")
        try:
            kubectl(*drain, "--pod-selector=app.kubernetes.io/part-of=troupe", seconds=330)
        finally:
            kubectl("uncordon", node)

    async with running(installation) as run:
        await run.survives("node drained, then uncordoned", drained)
        await run.end()
        await nothing_is_given_up(run)


@pytest.mark.skipif(
    not API_AWAY, reason="TROUPE_TEST_API_AWAY is no command that takes the API server away for a while"
)
async def test_training_goes_on_while_the_api_server_is_away(installation: Installation) -> None:
    async with running(installation) as run:
        before, begun_at = (await run.at("rolling")).number, time.monotonic()
        await asyncio.to_thread(subprocess.run, API_AWAY, shell=True, check=True)
        away = time.monotonic() - begun_at
        assert away >= AWAY_SECONDS, f"TROUPE_TEST_API_AWAY took {away:.0f} s; it has to take {AWAY_SECONDS:.0f} s"
        assert run.record.committed() > before + 1
        await asyncio.to_thread(installation.wait)
        await run.told("ApiServerAway")
        kill_it = partial(kill, installation, "executor")
        await run.survives("executor: pod killed once the API server is back", kill_it, ended="executor")
        await every_engine_has_the_updates(installation, run, engines=1)
        await nothing_is_given_up(run)


def test_applying_again_changes_nothing(installation: Installation) -> None:
    told = kubectl("diff", "-k", OVERLAY, check=False)
    assert (told.returncode, told.stdout) == (0, ""), told.stderr


async def test_a_namespace_that_is_deleted_with_a_run_in_it_goes_and_can_be_made_again(
    installation: Installation, tmp_path: Path
) -> None:
    run = await begun(installation, steps=40)
    await run.at("rolling")
    kubectl("delete", "namespace", NAMESPACE, "--timeout=300s", seconds=330)
    with installed(tmp_path) as again:
        again.wait()
        assert again.store.rows("select run_id from runs where run_id = ?", run.run_id) == []
        async with running(again, steps=2) as other:
            await other.finish()
