"""A full store and a full database: nothing is learned twice or lost, it is told by name, and with room the run goes on."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from deployed.installation import NAMESPACE, OVERLAY, WORKLOADS, Installation, Variant, varied
from deployed.runs import STEP_SECONDS, ClusterRun, running
from rendered.kubectl import kubectl
from rendered.overlays import Manifests, render_folder
from troupe_client.sdk import Client
from troupe_contracts.access import Role

SMALL_VOLUME = os.environ.get("TROUPE_TEST_SMALL_VOLUME", "")
"""A folder of the node, open to everybody, on a file system of its own of 300 MB or so."""

VOLUME_AND_CLAIM = f"""
apiVersion: v1
kind: PersistentVolume
metadata: {{name: small}}
spec:
  hostPath: {{path: {SMALL_VOLUME}}}
  capacity: {{storage: 256Mi}}
  accessModes: [ReadWriteMany]
  storageClassName: small
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: small, namespace: {NAMESPACE}}}
spec:
  resources: {{requests: {{storage: 256Mi}}}}
  accessModes: [ReadWriteMany]
  storageClassName: small
"""

FREE_SPACE = "free space on its file system"
"""What is said of a full database."""

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2400)]


def with_volume(manifests: Manifests, workload: str, source: dict[str, Any], folder: str) -> None:
    """A volume more; what was mounted at that place before is not any longer."""
    pod = manifests.one("StatefulSet", workload)["spec"]["template"]["spec"]
    pod["volumes"].append({"name": "small", **source})
    (container,) = pod["containers"]
    mounts = [each for each in container["volumeMounts"] if each["mountPath"] != folder]
    container["volumeMounts"] = [*mounts, {"name": "small", "mountPath": folder}]


def fill(component: str, installation: Installation, folder: str) -> None:
    filled = kubectl(
        *installation.inside(component)[1:], "sh", "-c", f"cat /dev/zero >{folder}/filler", check=False, seconds=120
    )
    assert "No space left on device" in filled.stderr


def make_room(component: str, installation: Installation, folder: str) -> None:
    kubectl(*installation.inside(component)[1:], "rm", f"{folder}/filler")


async def paused(run: ClusterRun) -> str:
    """The reason of a run that does not run any more."""
    deadline = time.monotonic() + STEP_SECONDS
    while (state := run.record.run_state())[0] != "paused":
        assert time.monotonic() < deadline, state
        await asyncio.sleep(0.2)
    return str(state[1])


async def resume(run: ClusterRun) -> None:
    installation = run.installation
    async with Client(installation.target("orchestrator"), installation.identity(Role.CLIENT)) as client:
        await client.resume_run(run.run_id)


async def names_the_database(run: ClusterRun) -> None:
    """Returns when the run says that it waits for the database's space, or that it does not run for want of it."""
    deadline = time.monotonic() + STEP_SECONDS
    while True:
        try:
            waits = await run.waits()
        except grpc.aio.AioRpcError as error:
            # A database that cannot write may end, and start again.
            waits = f"no answer: {error.details()}"
        if FREE_SPACE in waits:
            return
        assert time.monotonic() < deadline, waits
        await asyncio.sleep(0.2)


@pytest.mark.skipif(not SMALL_VOLUME, reason="TROUPE_TEST_SMALL_VOLUME is no folder of the node on a small file system")
async def test_a_full_store_pauses_the_run_by_name_and_with_room_it_goes_on(installation: Installation) -> None:
    manifests = render_folder(Path(OVERLAY))
    for workload in ("orchestrator", "learner"):
        with_volume(manifests, workload, {"persistentVolumeClaim": {"claimName": "small"}}, "/store/data")
    (container,) = manifests.one("StatefulSet", "orchestrator")["spec"]["template"]["spec"]["containers"]
    container.setdefault("env", []).append({"name": "TROUPE_PATIENCE_SECONDS", "value": "60"})
    small = tuple(yaml.safe_load_all(VOLUME_AND_CLAIM))
    try:
        with varied(installation, Manifests((*small, *manifests.objects)), Variant()):
            async with running(installation, steps=8) as run:
                await run.at("rolling", after=3)
                fill("orchestrator", installation, "/store/data")
                reason = await paused(run)
                assert reason.startswith("DiskFull")
                assert "free space" in reason
                committed, kept = run.record.committed(), run.record.checkpoints()
                assert kept
                # A learner that starts again has nothing but the checkpoint that is kept, and the batches after it.
                kubectl("-n", NAMESPACE, "delete", "pod", installation.pod("learner"), "--wait=true", seconds=150)
                make_room("orchestrator", installation, "/store/data")
                await asyncio.to_thread(installation.wait)
                assert run.record.checkpoints() == kept
                assert (await installation.learner()).applied_step == 0
                await resume(run)
                await run.committed(committed + 1)
                await run.finish()
                assert run.record.dropped() == []
    finally:
        kubectl("-n", NAMESPACE, "delete", "pvc", "small", "--ignore-not-found", "--wait=false")
        kubectl("delete", "pv", "small", "--ignore-not-found", "--wait=false")


async def test_a_full_database_holds_the_run_up_and_with_room_it_goes_on(installation: Installation) -> None:
    manifests = render_folder(Path(OVERLAY))
    memory = {"emptyDir": {"medium": "Memory", "sizeLimit": "256Mi"}}
    with_volume(manifests, "postgres", memory, "/var/lib/postgresql")
    # A learner goes from one store to another once it is restarted.
    restart = ("-n", NAMESPACE, "rollout", "restart", WORKLOADS["orchestrator"], WORKLOADS["learner"])
    try:
        with varied(installation, manifests, Variant()):
            kubectl(*restart)  # to the other database
            installation.wait()
            async with running(installation, steps=8) as run:
                await run.at("rolling", after=3)
                fill("postgres", installation, "/var/lib/postgresql")
                await asyncio.sleep(10)  # a last commit may find room
                committed = run.record.committed()
                await names_the_database(run)
                await asyncio.sleep(60)
                assert run.record.committed() == committed
                make_room("postgres", installation, "/var/lib/postgresql")
                await asyncio.to_thread(installation.wait)
                # Whether the run could say that it pauses depends on the last few bytes.
                if run.record.run_state()[0] == "paused":
                    assert FREE_SPACE in str(run.record.run_state()[1])
                    await resume(run)
                await run.finish()
                assert run.record.dropped() == []
    finally:
        kubectl(*restart)
        installation.wait()
