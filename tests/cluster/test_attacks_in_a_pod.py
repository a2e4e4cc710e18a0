"""Every attack on the sandbox, in a pod that is the sandbox's own but for the program: profile `pod`, under the restricted
standard. Needs the image that `make image-sandbox-attacks` builds, where the nodes find it.
"""

import json
import time
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from deployed.installation import NAMESPACE, Installation
from rendered.kubectl import kubectl
from rendered.overlays import render

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]
JOB: Final = Path(__file__).parent / "attacks.yaml"
SECONDS: Final = 1500.0


def test_its_pod_is_the_sandboxs() -> None:
    job = yaml.safe_load(JOB.read_text())["spec"]["template"]["spec"]
    ours = next(each for each in render("local").workloads if each.name == "sandbox")
    for key in ("securityContext", "automountServiceAccountToken", "enableServiceLinks", "serviceAccountName"):
        assert job[key] == {**ours.pod, "securityContext": without_upgrades(ours.pod["securityContext"])}[key]
    assert job["containers"][0]["securityContext"] == ours.containers[0]["securityContext"]


def test_the_attacks_fail_in_a_pod_too(installation: Installation) -> None:
    kubectl("-n", NAMESPACE, "delete", "job", "sandbox-attacks", "--ignore-not-found")
    kubectl("apply", "-f", str(JOB))
    try:
        deadline = time.monotonic() + SECONDS
        while not (status := status_of("sandbox-attacks")).keys() & {"succeeded", "failed"}:
            assert time.monotonic() < deadline, f"the attacks do not end: {status}"
            time.sleep(2)
        log = kubectl("-n", NAMESPACE, "logs", "job/sandbox-attacks", "--tail=60").stdout
        assert status.get("succeeded") == 1, log
        print(log)
    finally:
        kubectl("-n", NAMESPACE, "delete", "job", "sandbox-attacks", "--ignore-not-found")


def status_of(job: str) -> dict[str, Any]:
    return dict(json.loads(kubectl("-n", NAMESPACE, "get", "job", job, "-o", "json").stdout)["status"])


def without_upgrades(context: dict[str, Any]) -> dict[str, Any]:
    """A pod's security context, but for when the owner of its volumes is changed."""
    return {key: value for key, value in context.items() if key != "fsGroupChangePolicy"}
