"""Components on top of the deployment: objects as requests, a learner of two pods, TLS between all."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from deployed.installation import NAMESPACE, Installation, Variant, varied
from deployed.runs import running
from grpc_health.v1 import health_pb2, health_pb2_grpc
from guarded.authority import Authority, Pair
from rendered.kubectl import kubectl
from rendered.overlays import Manifests, render_with
from troupe_contracts.channel import connect
from troupe_contracts.identity import Identity, own, read_identity

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2400)]


EXAMPLES = Path(__file__).parents[2] / "examples"


def test_objects_start_a_run_and_an_eval_job_and_tell_of_them(installation: Installation, tmp_path: Path) -> None:
    in_namespace = ("-n", NAMESPACE)
    with varied(installation, render_with("local", "crds", tmp_path), Variant()):
        files = ("-f", str(EXAMPLES / "training-run.yaml"), "-f", str(EXAMPLES / "eval-job.yaml"))
        kubectl(*in_namespace, "delete", "--ignore-not-found", *files)
        kubectl(*in_namespace, "apply", *files)
        complete = "--for=condition=Complete"
        for kind, name in (("trainingrun", "two-steps"), ("evaljob", "sums")):
            kubectl(*in_namespace, "wait", complete, f"{kind}/{name}", "--timeout=600s", seconds=630)
        assert "2/2" in kubectl(*in_namespace, "get", "trainingrun", "two-steps").stdout
        assert "Succeeded" in kubectl(*in_namespace, "get", "evaljob", "sums").stdout
        described = kubectl(*in_namespace, "describe", "trainingrun", "two-steps").stdout
        assert "StageStarted" in described
        kubectl(*in_namespace, "delete", *files)


async def test_there_are_as_many_replicas_as_the_stage_of_a_run_asks_for(
    installation: Installation, tmp_path: Path
) -> None:
    manifests = render_with("local", "scaling-by-stage", tmp_path)
    (plan,) = (each for each in manifests.objects if "replicas.yaml" in each.get("data", {}))
    plan["data"]["replicas.yaml"] = "{both: {sandbox: 3}, idle: {sandbox: 1}}"
    with varied(installation, manifests, Variant()):
        await ready_in_time(installation, "sandbox", 1)
        async with running(installation, steps=12) as run:
            await ready_in_time(installation, "sandbox", 3)
            await run.finish()
            assert run.record.dropped() == []
        await ready_in_time(installation, "sandbox", 1)


async def ready_in_time(installation: Installation, component: str, replicas: int) -> None:
    """Returns once there are so many pods, all ready."""
    async with asyncio.timeout(300):
        while [is_ready(pod) for pod in installation.pods(component)] != [True] * replicas:
            await asyncio.sleep(1)


def is_ready(pod: dict[str, Any]) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions", ()))


@pytest.mark.parametrize("zero_stage", [2, 3])
async def test_a_learner_of_two_pods_trains_on_when_either_dies(
    installation: Installation, tmp_path: Path, zero_stage: int
) -> None:
    manifests = render_with("local", "learner-gang", tmp_path)
    container = manifests.one("StatefulSet", "learner")["spec"]["template"]["spec"]["containers"][0]
    container["env"].append({"name": "TROUPE_ZERO_STAGE", "value": str(zero_stage)})
    alike = Variant(learner={"engine": "deepspeed", "ranks": 2, "settings": {"zero_stage": zero_stage}})
    with varied(installation, manifests, alike):
        assert "2 nodes" in (await installation.learner()).engine
        for pod in ("learner-1", "learner-0"):
            kill = partial(
                kubectl, "-n", NAMESPACE, "delete", "pod", pod, "--grace-period=0", "--force", "--wait=false"
            )
            before = (await installation.learner()).generation
            async with running(installation) as run:
                fault = f"{pod} of two killed, ZeRO-{zero_stage}"
                await run.survives(fault, kill, "sealed", ended="learner", lands=("sealed",), held=True)
                if pod == "learner-1":
                    await run.formed_ranks_anew(before)
                else:
                    # The process that counts generations starts again, and counts from 1.
                    assert 0 < (await installation.learner()).generation < before
                await run.end()
                assert run.record.dropped() == []


def issued(manifests: Manifests, authority: Authority) -> Manifests:
    """What a cluster with cert-manager would have: a stand-in for it makes the Secret of each Certificate."""
    made: list[dict[str, Any]] = []
    for each in manifests.objects:
        if not each["apiVersion"].startswith("cert-manager.io/"):
            made.append(each)
        elif each["kind"] == "Certificate" and not each["spec"].get("isCA"):
            made.append(tls_secret(each, authority))
    return Manifests(tuple(made))


def tls_secret(certificate: dict[str, Any], authority: Authority) -> dict[str, Any]:
    wanted = certificate["spec"]
    pair = authority.sign(certificate["metadata"]["name"], *wanted.get("uris", ()), hosts=wanted["dnsNames"])
    files = {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": authority.certificate}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {"name": wanted["secretName"], "namespace": NAMESPACE},
        "data": {name: base64.b64encode(file.read_bytes()).decode() for name, file in files.items()},
    }


def shown(authority: Authority, pair: Pair) -> Identity:
    return read_identity(
        authority=authority.certificate, certificate=pair.certificate, key=pair.key, server_name="troupe"
    )


async def answer(target: str, identity: Identity) -> grpc.StatusCode:
    async with connect(target, identity) as channel:
        try:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        except grpc.aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


async def test_with_tls_a_run_goes_through_and_nobody_talks_in_the_clear(
    installation: Installation, tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in ("overlay", "authority", "strangers")]
    for folder in folders:
        folder.mkdir()
    authority, strangers = (Authority.new(folder) for folder in folders[1:])
    manifests = issued(render_with("local", "tls-cert-manager", folders[0]), authority)
    credentials = shown(authority, authority.sign("us", "troupe-role:orchestrator"))
    with varied(installation, manifests, Variant(credentials=credentials)):
        for service in ("orchestrator", "learner", "executor", "sandbox"):
            target = installation.target(service)
            in_the_clear = Identity(token=own().token)
            trusting_others = replace(own(), certificates=read_identity(authority=strangers.certificate).certificates)
            codes = [await answer(target, each) for each in (own(), in_the_clear, trusting_others)]
            assert codes == [grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAVAILABLE]
        async with running(installation, steps=2) as run:
            await run.finish()
