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
from deployed.installation import NAMESPACE, OVERLAY, WORKLOADS, Installation, Variant, installed, varied
from deployed.runs import ClusterRun, begun, running
from rendered.kubectl import kubectl
from rendered.overlays import render_folder
from troupe.v1 import sandbox_pb2, sandbox_pb2_grpc
from troupe_contracts.channel import connect
from troupe_contracts.identity import own

API_AWAY = os.environ.get("TROUPE_TEST_API_AWAY", "")
"""A command of the shell; it returns when the API server is back. Any cluster has another."""
DRAINED_STEPS = 24
"""Of two seconds and more each: a pod that is asked to end takes some for it."""

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


@pytest.mark.parametrize("component", ["executor", "designer", "sandbox", "learner", "orchestrator", "postgres"])
async def test_a_pod_that_dies_in_a_step_costs_nothing_but_time(installation: Installation, component: str) -> None:
    async with running(installation, steps=8) as run:
        await run.survives(f"{component}: pod killed", partial(kill, installation, component), ended=component)
        await run.finish()
        await nothing_is_given_up(run)


@pytest.mark.parametrize("component", ["executor", "designer", "sandbox"])
async def test_a_pod_that_is_drained_fails_no_turn(installation: Installation, component: str) -> None:
    async with running(installation, steps=DRAINED_STEPS) as run:
        await run.survives(f"{component}: pod drained", partial(end, installation, component), ended=component)
        await run.finish()
        await no_turn_failed(run)


@pytest.mark.parametrize("state", ["sealed", "trained", "synced"])
async def test_the_orchestrator_dies_soon_after_each_phase_began(installation: Installation, state: str) -> None:
    async with running(installation, steps=8) as run:
        await run.survives(
            f"orchestrator: pod killed once a step was {state}",
            partial(kill, installation, "orchestrator"),
            state,
            ended="orchestrator",
        )
        await run.finish()
        await nothing_is_given_up(run)


async def test_the_learner_dies_while_it_trains(installation: Installation) -> None:
    async with running(installation, steps=8) as run:
        kill_it = partial(kill, installation, "learner")
        await run.survives("learner: pod killed once a step was sealed", kill_it, "sealed", ended="learner")
        await run.finish()
        await nothing_is_given_up(run)


async def test_a_rank_of_the_learner_dies_while_it_trains(installation: Installation) -> None:
    program = (
        "import os, signal\n"
        "others = [pid for pid in os.listdir('/proc') if pid.isdigit() and int(pid) != os.getpid()]\n"
        "ranks = [pid for pid in others if b'troupe_learner.rank' in open(f'/proc/{pid}/cmdline', 'rb').read()]\n"
        "os.kill(int(ranks[0]), signal.SIGKILL)"
    )
    inside = installation.inside("learner")[1:]
    async with running(installation, steps=8) as run:
        await run.survives("learner: rank killed", partial(kubectl, *inside, "python", "-c", program), "sealed")
        await run.finish()
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


async def is_named_and_starts_again(installation: Installation, component: str) -> None:
    inside = installation.inside(component)[1:]
    async with running(installation, steps=8) as run:
        exhaust = partial(kubectl, *inside, "python", "-c", MEMORY_HOG, check=False)
        await run.survives(f"{component}: out of memory", exhaust, ended=component)
        (pod,) = installation.pods(component)
        (status,) = pod["status"]["containerStatuses"]
        assert status["lastState"]["terminated"]["reason"] == "OOMKilled"
        assert any("OOMKilled" in condition for condition in await run.conditions())
        await run.finish()
        await nothing_is_given_up(run)


@pytest.mark.parametrize("component", ["executor", "learner"])
async def test_a_service_that_the_kernel_kills_for_want_of_memory_is_named_and_starts_again(
    installation: Installation, component: str
) -> None:
    await is_named_and_starts_again(installation, component)


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
    async with running(installation, steps=8) as run:
        before = restarts(installation)
        await run.at("rolling")
        async with connect(installation.target("sandbox"), own()) as channel:
            answers = [answer async for answer in sandbox_pb2_grpc.SandboxStub(channel).RunTests(request)]
        verdicts = {answer.case_result.verdict for answer in answers if answer.HasField("case_result")}
        assert verdicts == {sandbox_pb2.VERDICT_MEMORY_LIMIT}
        await run.finish()
        await no_turn_failed(run)
        assert restarts(installation) == before


async def test_executors_come_and_go_and_none_is_left_for_a_while(installation: Installation) -> None:
    def none_for_a_while() -> None:
        scale("executor", 0)
        time.sleep(15)
        scale("executor", 1)

    small = render_folder(Path(OVERLAY))
    (container,) = small.one("Deployment", "executor")["spec"]["template"]["spec"]["containers"]
    container["resources"]["requests"]["cpu"] = "100m"  # three of them are to fit on a node of two cores
    with varied(installation, small, Variant()):
        async with running(installation, steps=8) as run:
            await run.survives("executor: scaled to 0, back after 15 s", none_for_a_while)
            assert any(condition.startswith("NoExecutors") for condition in await run.conditions())
            await run.finish()
            await nothing_is_given_up(run)
        async with running(installation, steps=400) as run:  # more than there is time for
            await run.survives("executor: scaled to 3", partial(scale, "executor", 3))
            updates = len(run.record.sealed())
            await run.committed(run.record.committed() + 2)
            engines = [await installation.updates_of(pod["metadata"]["name"]) for pod in installation.pods("executor")]
            assert len(engines) == 3
            assert min(engines) >= updates, f"{engines} of {updates} updates"
            await run.survives("executor: scaled to 1", partial(scale, "executor", 1))
            await no_turn_failed(run)


@pytest.mark.parametrize("component", ["executor", "designer", "sandbox", "learner", "orchestrator"])
async def test_a_service_is_rolled_in_a_run(installation: Installation, component: str) -> None:
    restart = partial(kubectl, "-n", NAMESPACE, "rollout", "restart", WORKLOADS[component])
    async with running(installation, steps=DRAINED_STEPS) as run:
        await run.survives(f"{component}: rollout restart", restart, ended=component)
        await run.finish()
        await no_turn_failed(run)


@pytest.mark.parametrize("component", ["designer", "sandbox"])
async def test_an_image_that_does_not_start_leaves_the_old_replica_serving(
    installation: Installation, component: str
) -> None:
    nowhere = f"{component}=localhost/troupe-{component}:none"
    set_image = partial(kubectl, "-n", NAMESPACE, "set", "image", WORKLOADS[component], nowhere)
    undo = partial(kubectl, "-n", NAMESPACE, "rollout", "undo", WORKLOADS[component])
    async with running(installation, steps=5) as run:
        step = await run.at("rolling")
        set_image()
        try:
            # Two steps go through while the new pod cannot start.
            await run.committed(step.number + 1)
            status = kubectl("-n", NAMESPACE, "get", "events.events.k8s.io", "-o", "jsonpath={.items[*].note}").stdout
        finally:
            undo()
        assert f"troupe-{component}:none" in status
        await run.finish()
        await no_turn_failed(run)


async def test_a_node_is_drained_and_comes_back(installation: Installation) -> None:
    node = installation.pods("executor")[0]["spec"]["nodeName"]

    def drained() -> None:
        drain = ("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=300s")
        try:
            kubectl(*drain, "--pod-selector=app.kubernetes.io/part-of=troupe", seconds=330)
        finally:
            kubectl("uncordon", node)

    async with running(installation, steps=8) as run:
        await run.survives("node drained, then uncordoned", drained)
        await run.finish()
        await nothing_is_given_up(run)


@pytest.mark.skipif(
    not API_AWAY, reason="TROUPE_TEST_API_AWAY is no command that takes the API server away for a while"
)
async def test_training_goes_on_while_the_api_server_is_away(installation: Installation) -> None:
    async with running(installation, steps=400) as run:  # more than there is time for
        before = (await run.at("rolling")).number
        await asyncio.to_thread(subprocess.run, API_AWAY, shell=True, check=True)
        assert run.record.committed() > before + 1
        await run.survives("executor: pod killed once the API server is back", partial(kill, installation, "executor"))
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
