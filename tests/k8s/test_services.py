"""Services select pods that there are, at ports that these have."""

from typing import Final

import pytest
from rendered.overlays import Manifests
from rendered.policies import selects

SERVICES: Final = {"orchestrator", "designer", "executor", "sandbox", "learner", "learner-peers"}


def test_each_service_selects_one_workload_which_has_its_ports(manifests: Manifests) -> None:
    services = manifests.of("Service")
    assert {each["metadata"]["name"] for each in services} == SERVICES | {"postgres"}
    for service in services:
        selected = [
            each for each in manifests.workloads if selects({"matchLabels": service["spec"]["selector"]}, each.labels)
        ]
        assert len(selected) == 1, service["metadata"]["name"]
        named = {port["name"] for port in selected[0].pod["containers"][0]["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= named


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_the_five_services_name_their_ports_grpc_and_http(manifests: Manifests, name: str) -> None:
    service = manifests.one("Service", name)
    assert {port["name"]: port["port"] for port in service["spec"]["ports"]} == {"grpc": 50051, "http": 9100}


def test_only_rank_0_of_the_gang_is_called_and_all_ranks_find_each_other_before_they_are_ready(
    manifests: Manifests,
) -> None:
    assert manifests.one("Service", "learner")["spec"]["selector"]["apps.kubernetes.io/pod-index"] == "0"
    peers = manifests.one("Service", "learner-peers")["spec"]
    assert peers["clusterIP"] == "None"
    assert peers["publishNotReadyAddresses"] is True
    learner = manifests.one("StatefulSet", "learner")["spec"]
    assert learner["serviceName"] == "learner-peers"
    assert learner["podManagementPolicy"] == "Parallel"


def test_claims_that_pods_name_are_there(manifests: Manifests) -> None:
    claims = {each["metadata"]["name"] for each in manifests.of("PersistentVolumeClaim")}
    named = {
        volume["persistentVolumeClaim"]["claimName"]
        for each in manifests.workloads
        for volume in each.pod["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert named == claims


def test_nothing_listens_outside_of_the_cluster(manifests: Manifests) -> None:
    assert {each["spec"].get("type", "ClusterIP") for each in manifests.of("Service")} == {"ClusterIP"}
    assert not manifests.of("Ingress")
