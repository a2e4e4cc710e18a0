"""Who may talk to whom, over the rendered policies: exactly the edges that there are. Declared, not proven by a network."""

from collections.abc import Mapping
from typing import Final

import pytest
from rendered.overlays import OVERLAYS, Manifests, render
from rendered.policies import Endpoint, allowed, selects

COMPONENT: Final = "app.kubernetes.io/component"
# Strangers are what else could be there; `internet` and `api-server` are addresses, of which only the port is known.
CLIENT: Final = Endpoint("client", {COMPONENT: "client"}, "troupe")
STRANGER: Final = Endpoint("stranger", {"app": "stranger"}, "troupe")
NEIGHBOUR: Final = Endpoint("neighbour", {COMPONENT: "orchestrator"}, "elsewhere")
DNS: Final = Endpoint("dns", {"k8s-app": "kube-dns"}, "kube-system")
INTERNET: Final = Endpoint("internet", address="203.0.113.7")
METADATA: Final = Endpoint("metadata", address="169.254.169.254")
ELSEWHERE: Final = (CLIENT, STRANGER, NEIGHBOUR, DNS, INTERNET, METADATA)
GRPC, HTTP, SQL, NAMES, RENDEZVOUS = 50051, 9100, 5432, 53, 29500
PORTS: Final = (GRPC, HTTP, SQL, NAMES, RENDEZVOUS, 22, 80, 443, 6443)

Edge = tuple[str, str, int]
_EVERY_OVERLAY: Final[frozenset[Edge]] = frozenset(
    {
        ("client", "orchestrator", GRPC),
        ("orchestrator", "designer", GRPC),
        ("orchestrator", "sandbox", GRPC),
        ("orchestrator", "learner", GRPC),
        ("orchestrator", "postgres", SQL),
        *(("learner", "learner", port) for port in PORTS),
        # The API server has an address that nobody knows beforehand: these ports are open to all but link-local ones.
        *(
            (pod, place, port)
            for pod in ("orchestrator", "credentials")
            for place in ("internet", "neighbour", "dns")
            for port in (443, 6443)
        ),
        *((pod, "dns", NAMES) for pod in ("client", "orchestrator", "designer", "learner")),
    }
)
_TWO_ENGINES: Final[frozenset[Edge]] = frozenset(
    {
        ("orchestrator", "executor", GRPC),
        ("designer", "executor", GRPC),
        ("executor", "learner", GRPC),
        ("executor", "dns", NAMES),
    }
)
_ONE_ENGINE: Final[frozenset[Edge]] = frozenset(
    {("designer", "learner", GRPC), ("designer", "internet", 443), ("learner", "internet", 443)}
)
EDGES: Final[Mapping[str, frozenset[Edge]]] = {
    "local": _EVERY_OVERLAY | _TWO_ENGINES,
    "node-8gpu": _EVERY_OVERLAY | _ONE_ENGINE,
    "cluster": _EVERY_OVERLAY | _ONE_ENGINE,
    "ci-kwok": _EVERY_OVERLAY | _ONE_ENGINE,
}


def endpoints(manifests: Manifests) -> list[Endpoint]:
    """A pod of each workload, and everybody else."""
    pods = [
        Endpoint(
            workload.labels[COMPONENT],
            workload.labels,
            "troupe",
            ports={
                port["name"]: port["containerPort"] for each in workload.containers for port in each.get("ports", ())
            },
        )
        for workload in manifests.workloads
    ]
    return [*pods, *ELSEWHERE]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_edges_that_there_are_are_allowed_and_no_others(overlay: str) -> None:
    manifests = render(overlay)
    policies = manifests.of("NetworkPolicy")
    all_endpoints = endpoints(manifests)
    found = {
        (source.name, target.name, port)
        for source in all_endpoints
        for target in all_endpoints
        for port in PORTS
        # What others do among themselves is not ours to say.
        if (source.namespace == "troupe" or target.namespace == "troupe")
        and (
            allowed(policies, source, target, port)
            or (port == NAMES and allowed(policies, source, target, port, "UDP"))
        )
    }
    assert found - EDGES[overlay] == set()
    assert EDGES[overlay] - found == set()


def test_the_sandbox_reaches_nobody_not_even_a_name_server(manifests: Manifests) -> None:
    all_endpoints = endpoints(manifests)
    (sandbox,) = [each for each in all_endpoints if each.name == "sandbox"]
    for target in all_endpoints:
        for port in PORTS:
            for protocol in ("TCP", "UDP", "SCTP"):
                assert not allowed(manifests.of("NetworkPolicy"), sandbox, target, port, protocol)


def test_each_policy_selects_a_pod_that_there_is(manifests: Manifests) -> None:
    ours = [each for each in endpoints(manifests) if each.namespace == "troupe"]
    for policy in manifests.of("NetworkPolicy"):
        assert any(selects(policy["spec"]["podSelector"], each.labels) for each in ours), policy["metadata"]["name"]
