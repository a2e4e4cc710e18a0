"""The orchestrator's part of Kubernetes against a real API server, with the rights that k8s/base gives it and no others.

    TROUPE_TEST_CLUSTER=1 pytest -m cluster tests/orchestrator/kubernetes

An API server with etcd is enough: no node, no controller. Objects are made in a namespace of the tests' own.
"""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from standin_api.objects import endpoint, endpoint_slice, pod
from standin_api.silence import SilentRelay
from troupe_kubernetes.api import MERGE_PATCH, Api, ApiError, Object
from troupe_kubernetes.endpoints import SERVICE_LABEL, endpoints
from troupe_kubernetes.mirror import SILENT_SECONDS, Mirror, Snapshot
from troupe_orchestrator.kubernetes.run_events import Told, event_object

pytestmark = pytest.mark.cluster

K8S = Path(__file__).parents[3] / "k8s"
SLICES = "discovery.k8s.io/v1"
EVENTS = "events.k8s.io/v1"
RULES = "rbac.authorization.k8s.io/v1"


@pytest.fixture(scope="module")
def admin() -> Iterator[Api]:
    """Whoever the current context is, in a namespace of the tests' own."""
    if not os.environ.get("TROUPE_TEST_CLUSTER"):
        pytest.skip("uses a Kubernetes cluster: `make test-cluster`, on the current context of kubectl")
    namespace = f"troupe-test-{uuid.uuid4().hex[:8]}"
    api = Api.from_kubeconfig(namespace=namespace)
    api.send("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
    yield api
    api.send("DELETE", f"/api/v1/namespaces/{namespace}", {})


@pytest.fixture(scope="module")
def orchestrator_config(admin: Api) -> Object:
    """The kubeconfig of the orchestrator's service account, with the rights of the manifests."""
    admin.send("POST", admin.namespaced("v1", "serviceaccounts"), {"metadata": {"name": "orchestrator"}})
    _grant(admin, K8S / "base" / "orchestrator" / "rbac.yaml")
    asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
    path = f"{admin.namespaced('v1', 'serviceaccounts', 'orchestrator')}/token"
    token = admin.send("POST", path, asked)["status"]["token"]
    cluster = {"server": admin.server, "certificate-authority": admin.client.configuration.ssl_ca_cert}
    context = {"cluster": "here", "user": "orchestrator", "namespace": admin.namespace}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "here", "cluster": cluster}],
        "users": [{"name": "orchestrator", "user": {"token": token}}],
        "contexts": [{"name": "here", "context": context}],
    }


@pytest.fixture(scope="module")
def orchestrator(orchestrator_config: Object, tmp_path_factory: pytest.TempPathFactory) -> Api:
    file = tmp_path_factory.mktemp("orchestrator") / "kubeconfig"
    file.write_text(json.dumps(orchestrator_config))
    return Api.from_kubeconfig(file=str(file))


class Heard:
    """What a mirror said last."""

    def __init__(self) -> None:
        self.snapshot = Snapshot(())
        self._came = threading.Condition()

    def __call__(self, snapshot: Snapshot) -> None:
        with self._came:
            self.snapshot = snapshot
            self._came.notify_all()

    def until(self, holds: Callable[[Snapshot], bool], seconds: float = 20) -> None:
        with self._came:
            assert self._came.wait_for(lambda: holds(self.snapshot), seconds), self.snapshot


def targets(snapshot: Snapshot) -> set[str]:
    return {each.target for each in endpoints(snapshot.objects, "grpc").values()}


def test_members_follow_the_endpoint_slices(admin: Api, orchestrator: Api) -> None:
    told = Heard()
    path = orchestrator.namespaced(SLICES, "endpointslices")
    mirror = Mirror(orchestrator, path, {"labelSelector": f"{SERVICE_LABEL}=executor"}, told)
    mirror.start()
    try:
        made = _slice("executor", endpoint("10.0.0.1", "a"), endpoint("10.0.0.2", "b"))
        admin.send("POST", path, made)
        told.until(lambda now: targets(now) == {"10.0.0.1:50051", "10.0.0.2:50051"})
        admin.send("POST", path, _slice("designer", endpoint("10.0.0.9", "d")))
        ending = {"endpoints": [endpoint("10.0.0.1", "a", terminating=True), endpoint("10.0.0.2", "b", ready=False)]}
        admin.send("PATCH", f"{path}/executor-1", ending, MERGE_PATCH)
        told.until(lambda now: targets(now) == {"10.0.0.2:50051"})
        admin.send("DELETE", f"{path}/executor-1", {})
        told.until(lambda now: targets(now) == set())
    finally:
        mirror.stop()


def test_a_watch_is_ended_by_the_server_and_begun_again(admin: Api, orchestrator: Api) -> None:
    told = Heard()
    path = orchestrator.namespaced("v1", "pods")
    mirror = Mirror(orchestrator, path, {}, told, watch_seconds=1, silent_seconds=3.0)
    mirror.start()
    try:
        threading.Event().wait(2.5)
        made = pod("late", "executor")
        del made["metadata"]["uid"], made["metadata"]["namespace"], made["status"]
        made["spec"] = {"containers": [{"name": "main", "image": "none"}], "automountServiceAccountToken": False}
        _await_account_of_pods(admin)
        admin.send("POST", path, made)
        told.until(lambda now: [each["metadata"]["name"] for each in now.objects] == ["late"])
    finally:
        mirror.stop()


@pytest.mark.timeout(600)
def test_stale_members_are_gone_after_a_watch_was_cut_in_silence(
    admin: Api, orchestrator: Api, orchestrator_config: Object, tmp_path: Path
) -> None:
    """Takes four and a half minutes: a router that forgot a connection tells nobody."""
    server = urlsplit(orchestrator.server)
    path = orchestrator.namespaced(SLICES, "endpointslices")
    told = Heard()
    with SilentRelay(str(server.hostname), server.port or 443) as relay:
        way = {"server": f"https://127.0.0.1:{relay.port}", "tls-server-name": server.hostname}
        config = deepcopy(orchestrator_config)
        config["clusters"][0]["cluster"] |= way
        file = tmp_path / "kubeconfig"
        file.write_text(json.dumps(config))
        mirror = Mirror(Api.from_kubeconfig(file=str(file)), path, {"labelSelector": f"{SERVICE_LABEL}=sandbox"}, told)
        mirror.start()
        try:
            made = _slice("sandbox", endpoint("10.0.0.1", "a"), endpoint("10.0.0.2", "b"))
            admin.send("POST", path, made)
            told.until(lambda now: targets(now) == {"10.0.0.1:50051", "10.0.0.2:50051"})
            relay.fall_silent()
            admin.send("PATCH", f"{path}/sandbox-1", {"endpoints": [endpoint("10.0.0.2", "b")]}, MERGE_PATCH)
            with pytest.raises(AssertionError):
                told.until(lambda now: len(targets(now)) < 2, seconds=10)  # it is silent indeed
            told.until(lambda now: targets(now) == {"10.0.0.2:50051"}, SILENT_SECONDS)
        finally:
            mirror.stop()


def test_an_event_is_taken_and_shown_for_its_object(admin: Api, orchestrator: Api) -> None:
    regarding = {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "name": "orchestrator",
        "namespace": admin.namespace,
        "uid": "11111111-2222-3333-4444-555555555555",
    }
    written = event_object(
        Told("Paused", "Warning", "run a after step 3: why"), regarding, "orchestrator-0", datetime.now(UTC)
    )
    orchestrator.send("POST", orchestrator.namespaced(EVENTS, "events"), written)
    # As `kubectl describe` asks.
    (found,) = admin.get(admin.namespaced("v1", "events"), {"fieldSelector": "involvedObject.name=orchestrator"})[
        "items"
    ]
    assert (found["reason"], found["type"], found["message"]) == ("Paused", "Warning", "run a after step 3: why")


def test_it_may_scale_its_engines_with_the_component_and_nothing_else(admin: Api, orchestrator: Api) -> None:
    for name in ("executor", "other"):
        admin.send("POST", admin.namespaced("apps/v1", "deployments"), _deployment(name))
    body = {"spec": {"replicas": 3}}
    path = orchestrator.namespaced("apps/v1", "deployments", "executor")
    with pytest.raises(ApiError, match="Forbidden"):
        orchestrator.send("PATCH", f"{path}/scale", body, MERGE_PATCH)
    _grant(admin, K8S / "components" / "scaling-by-stage" / "rbac.yaml")
    while admin.get(path)["spec"]["replicas"] != 3:
        # The API server hears of new rights a moment after it has taken them.
        with suppress(ApiError):
            orchestrator.send("PATCH", f"{path}/scale", body, MERGE_PATCH)
    for refused in (
        lambda: orchestrator.send("PATCH", f"{path.replace('executor', 'other')}/scale", body, MERGE_PATCH),
        lambda: orchestrator.send("PATCH", path, body, MERGE_PATCH),
        lambda: orchestrator.get(orchestrator.namespaced("v1", "secrets")),
        lambda: orchestrator.send("POST", orchestrator.namespaced("v1", "pods"), _deployment("x")["spec"]["template"]),
        lambda: orchestrator.get("/api/v1/nodes"),
    ):
        with pytest.raises(ApiError) as caught:
            refused()
        assert caught.value.status == 403


def _grant(admin: Api, rights: Path) -> None:
    """The manifest's role and its binding, in the namespace of the tests."""
    role, binding = yaml.safe_load_all(rights.read_text())
    binding["subjects"][0]["namespace"] = admin.namespace
    admin.send("POST", admin.namespaced(RULES, "roles"), role)
    admin.send("POST", admin.namespaced(RULES, "rolebindings"), binding)


def _await_account_of_pods(admin: Api) -> None:
    """The cluster makes one in each namespace, moments after it; pods are refused until then."""
    wanted = {"fieldSelector": "metadata.name=default"}
    while not admin.get(admin.namespaced("v1", "serviceaccounts"), wanted)["items"]:
        threading.Event().wait(0.1)


def _slice(service: str, *listed: Object) -> Object:
    made = endpoint_slice(service, *listed)
    del made["metadata"]["uid"], made["metadata"]["resourceVersion"]
    return {"apiVersion": SLICES, "kind": "EndpointSlice", **made}


def _deployment(name: str) -> Object:
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "main", "image": "none"}]}}
    return {"metadata": {"name": name}, "spec": {"selector": {"matchLabels": labels}, "template": template}}
