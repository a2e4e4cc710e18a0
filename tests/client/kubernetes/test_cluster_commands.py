"""`troupe --context` and `troupe --namespace`, against a stand-in API server."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from standin_api.objects import PODS, pod, running, unschedulable, waiting
from standin_api.server import StandInApi
from troupe_client import frame
from troupe_client.cli import app
from typer.testing import CliRunner, Result

ROOT = Path(__file__).parents[3]
NODES = "/api/v1/nodes"
NAMESPACES = "/api/v1/namespaces"
CLASSES = "/apis/storage.k8s.io/v1/storageclasses"
CLAIMS = "/api/v1/namespaces/troupe/persistentvolumeclaims"


def troupe(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments)


def test_status_shows_each_pod_and_why_it_does_not_serve(standin: StandInApi, monkeypatch: pytest.MonkeyPatch) -> None:
    # The console was made when the module was imported, as wide as things were then.
    monkeypatch.setattr(frame.out, "width", 200)
    standin.put(PODS, pod("orchestrator-0", "orchestrator"))
    standin.put(
        PODS, pod("learner-1", "learner", unschedulable("0/1 nodes are available: 1 Insufficient nvidia.com/gpu."))
    )
    oom = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}
    standin.put(PODS, pod("executor-abc", "executor", running(False, restartCount=2, lastState=oom)))
    shown = troupe("--context", "standin", "status")
    assert "learner-1 Pending: insufficient nvidia.com/gpu" in shown.stdout
    assert "executor-abc OOMKilled: container main used more memory than its limit" in shown.stdout
    lines = shown.stdout.splitlines()
    assert [line.split()[1] for line in lines if line.startswith(("│ orch", "│ exec", "│ learn"))] == [
        "orchestrator",
        "executor",
        "learner",
    ]
    assert shown.exit_code == 1


def test_status_of_an_empty_namespace_says_what_to_do(standin: StandInApi) -> None:
    shown = troupe("-n", "troupe", "status")
    assert shown.exit_code == 1
    assert "namespace troupe of http" in shown.stderr
    assert "kubectl apply -k" in shown.stderr


def test_a_command_for_this_machine_refuses_a_cluster(standin: StandInApi) -> None:
    for command in ("up", "down", "quickstart"):
        refused = troupe("--context", "standin", command)
        assert refused.exit_code == 2
        assert "leave out --context" in refused.stderr


def test_a_target_beside_a_cluster_is_refused(standin: StandInApi) -> None:
    refused = troupe("--context", "standin", "runs", "list", "--target", "127.0.0.1:1")
    assert refused.exit_code == 2
    assert "leave out --target" in refused.stderr


def test_a_context_that_is_not_there_is_named_with_those_that_are(standin: StandInApi) -> None:
    refused = troupe("--context", "other", "status")
    assert refused.exit_code == 1
    assert refused.stderr.strip() == "troupe: the kubeconfig has no context 'other', only standin"


def test_an_api_server_that_refuses_is_one_line(standin: StandInApi) -> None:
    standin.away = True
    for command in (["status"], ["runs", "list"]):
        refused = troupe("--context", "standin", *command)
        assert refused.exit_code == 1
        assert refused.stderr.strip() == "troupe: ServiceUnavailable: the stand-in is away"


def test_the_doctor_finds_nothing_to_mend_in_a_cluster_that_is_right(standin: StandInApi) -> None:
    healthy(standin)
    found = findings("--context", "standin")
    assert {name: level for name, (level, _) in found.items()} == dict.fromkeys(
        ["API server", "clock", "rights", "pod security", "storage", "nodes", "GPUs", "node clocks", "pods"], "ok"
    )
    assert found["GPUs"][1] == "8 × nvidia.com/gpu on 1 nodes"


def test_the_doctor_names_what_is_wrong(standin: StandInApi) -> None:
    healthy(standin)
    standin.allowed = {("get", "services")}
    standin.put(NAMESPACES, {"metadata": {"name": "troupe", "labels": {}}})
    standin.delete(CLASSES, "fast")
    standin.delete(NODES, "node-0")
    standin.put(NODES, node({"cpu": "2", "memory": "8Gi"}))
    standin.put(
        CLAIMS, {"metadata": {"name": "store"}, "spec": {"storageClassName": "fast"}, "status": {"phase": "Pending"}}
    )
    standin.put(PODS, pod("sandbox-0", "sandbox", waiting("ImagePullBackOff")))
    found = findings("--context", "standin")
    assert found["rights"][0] == "error"
    assert "create pods/portforward" in found["rights"][1]
    assert found["pod security"][0] == "warning"
    assert found["storage"] == ("error", "claim store has no volume yet: no StorageClass 'fast'")
    assert found["GPUs"] == ("warning", "no node has nvidia.com/gpu")
    assert found["pods"] == ("error", "sandbox-0 ImagePullBackOff: troupe/main:1")
    assert troupe("--context", "standin", "doctor").exit_code == 1


def healthy(standin: StandInApi) -> None:
    """A namespace, a StorageClass, a node with devices."""
    level = {"pod-security.kubernetes.io/enforce": "restricted"}
    standin.put(NAMESPACES, {"metadata": {"name": "troupe", "labels": level}})
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    standin.put(CLASSES, {"metadata": {"name": "fast", "annotations": default}})
    standin.put(NODES, node({"cpu": "3920m", "memory": "64Gi", "nvidia.com/gpu": "8"}))
    standin.put(PODS, pod("orchestrator-0", "orchestrator"))


def node(allocatable: dict[str, str]) -> dict[str, object]:
    status = {"allocatable": allocatable, "conditions": [{"type": "Ready", "status": "True"}]}
    return {"metadata": {"name": "node-0"}, "status": status}


def findings(*options: str) -> dict[str, tuple[str, str]]:
    """What each check says; of several the last."""
    shown = troupe(*options, "doctor", "--json")
    return {each["check"]: (each["level"], each["text"]) for each in json.loads(shown.stdout)}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not on the PATH")
def test_an_overlay_is_printed_as_kubectl_makes_it() -> None:
    folder = ROOT / "k8s" / "overlays" / "local"
    made = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True).stdout
    assert troupe("k8s", "render", "local", "--checkout", str(ROOT)).stdout == made
    assert troupe("k8s", "render", str(folder)).stdout == made


def test_an_overlay_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "k8s" / "overlays" / "local").mkdir(parents=True)
    (tmp_path / "k8s" / "overlays" / "local" / "kustomization.yaml").touch()
    refused = troupe("k8s", "render", "lokal", "--checkout", str(tmp_path))
    assert refused.exit_code == 1
    assert "there is no overlay 'lokal'" in refused.stderr
    assert "has local" in refused.stderr
