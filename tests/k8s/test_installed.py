"""The `local` overlay, applied to a cluster whose nodes have the images: all of it serves, and is as isolated as it says.

    make images, and load them; then make test-cluster

What is installed already is used; nothing is deleted.
"""

import json
from typing import Any, Final

import pytest
from rendered.kubectl import kubectl
from rendered.overlays import K8S

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]
SERVICES: Final = ("orchestrator", "designer", "executor", "sandbox", "learner")


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    """The README's two commands."""
    kubectl("apply", "-k", str(K8S / "overlays" / "local"))
    ready = "--for=jsonpath={.status.readyReplicas}=1"
    kubectl("-n", "troupe", "wait", ready, "statefulset/orchestrator", "--timeout=20m", seconds=1260)


def pod_of(service: str) -> dict[str, Any]:
    found = kubectl("-n", "troupe", "get", "pods", "-l", f"app.kubernetes.io/component={service}", "-o", "json")
    pods = [pod for pod in json.loads(found.stdout)["items"] if "deletionTimestamp" not in pod["metadata"]]
    return dict(pods[0])


def inside(service: str, *command: str) -> str:
    """What a command prints in a container; fails unless it ran there and went well."""
    pod = pod_of(service)["metadata"]["name"]
    return kubectl("-n", "troupe", "exec", pod, "-c", service, "--", *command).stdout


@pytest.mark.parametrize("service", [*SERVICES, "postgres"])
def test_its_pod_is_ready(service: str) -> None:
    conditions = {each["type"]: each["status"] for each in pod_of(service)["status"]["conditions"]}
    assert conditions["Ready"] == "True"


def test_applying_again_changes_nothing() -> None:
    overlay = str(K8S / "overlays" / "local")
    differing = kubectl("diff", "-k", overlay, check=False)
    assert (differing.returncode, differing.stdout) == (0, ""), differing.stderr
    applied = kubectl("apply", "-k", overlay).stdout.splitlines()
    assert [line for line in applied if not line.endswith("unchanged")] == []


@pytest.mark.parametrize("service", SERVICES)
def test_it_runs_as_a_user_with_a_name_and_cannot_write_its_root(service: str) -> None:
    assert inside(service, "id", "-un") == "troupe\n"
    # By the mount, not by the permissions of the folder.
    mounts = inside(service, "cat", "/proc/mounts").splitlines()
    (options,) = [line.split()[3] for line in mounts if line.split()[1] == "/"]
    assert "ro" in options.split(",")


@pytest.mark.parametrize("service", ["designer", "executor", "sandbox", "learner"])
def test_it_has_no_token_of_the_api(service: str) -> None:
    assert inside(service, "sh", "-c", "ls -d /var/run/secrets/kubernetes.io 2>/dev/null || echo none") == "none\n"


def test_the_sandbox_holds_no_credential() -> None:
    assert inside("sandbox", "ls", "/run/troupe") == "callers\n"
    known = inside("sandbox", "cat", "/run/troupe/callers/tokens")
    assert "orchestrator" in known
    assert "troupe-token-" not in known
