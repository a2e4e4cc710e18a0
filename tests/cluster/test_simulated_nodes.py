"""The `ci-kwok` overlay on nodes that kwok simulates: every pod of a deployment that fills them is admitted and scheduled.

Pods run nothing there. What it says: the manifests of `cluster` hold at this size, and how long scheduling takes.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any

import pytest
from deployed.installation import NAMESPACE
from rendered.kubectl import kubectl
from rendered.overlays import K8S, render

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]
NODES = 128
GPUS = 8


def test_a_deployment_that_fills_128_nodes_of_eight_gpus_is_scheduled(capsys: pytest.CaptureFixture[str]) -> None:
    nodes = json.loads(kubectl("get", "nodes", "-l", "type=fake", "-o", "json").stdout)["items"]
    if len(nodes) < NODES:
        pytest.skip(
            f"needs {NODES} nodes of {GPUS} GPUs that kwok simulates, labelled type=fake: there are {len(nodes)}"
        )
    if kubectl("get", "namespace", NAMESPACE, check=False).returncode == 0:
        pytest.skip(f"something is deployed in the namespace {NAMESPACE}")
    expected = Counter({each.name: each.spec["replicas"] for each in render("ci-kwok").workloads if each.serves})
    begun = time.monotonic()
    kubectl("apply", "-k", str(K8S / "overlays" / "ci-kwok"))
    # In the cluster it is the Job `credentials` that makes them; its pod runs nothing here.
    try:
        pods = scheduled(sum(expected.values()))
        seconds = time.monotonic() - begun
        assert Counter(component(pod) for pod in pods) == expected
        taken: Counter[str] = Counter()
        for pod in pods:
            taken[pod["spec"]["nodeName"]] += gpus(pod)
        assert max(taken.values()) <= GPUS
        with capsys.disabled():
            print(f"\n{len(pods)} pods with {taken.total()} GPUs on {len(taken)} simulated nodes in {seconds:.0f} s")
        assert taken.total() == NODES * GPUS
    finally:
        kubectl("delete", "namespace", NAMESPACE, "--timeout=600s", seconds=630)


def scheduled(count: int) -> list[dict[str, Any]]:
    """The pods that serve, once so many of them have a node."""
    deadline = time.monotonic() + 900
    while True:
        found = json.loads(kubectl("-n", NAMESPACE, "get", "pods", "-o", "json").stdout)["items"]
        pods = [pod for pod in found if component(pod) != "credentials" and "nodeName" in pod["spec"]]
        if len(pods) == count:
            return pods
        assert time.monotonic() < deadline, f"{len(pods)} of {count} pods have a node"
        time.sleep(2)


def component(pod: dict[str, Any]) -> str:
    return str(pod["metadata"]["labels"]["app.kubernetes.io/component"])


def gpus(pod: dict[str, Any]) -> int:
    return sum(int(each["resources"].get("limits", {}).get("nvidia.com/gpu", 0)) for each in pod["spec"]["containers"])
