"""A learner of several pods: what each pod is told fits the others, and they can meet."""

from typing import Any, Final

import pytest
from rendered.overlays import OVERLAYS, Manifests, render
from rendered.readers import READERS
from troupe_contracts.settings import SettingsError, split_address
from troupe_learner.settings import LearnerSettings

GANG: Final = "cluster"


def learner_of(manifests: Manifests) -> tuple[dict[str, Any], dict[str, str]]:
    """Its StatefulSet, and what its first pod is told."""
    (workload,) = [each for each in manifests.workloads if each.name == "learner"]
    return workload.spec, manifests.environment(workload, workload.pod["containers"][0])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_there_is_a_pod_for_each_node_and_each_takes_what_it_is_told(overlay: str) -> None:
    spec, given = learner_of(render(overlay))
    for node in range(spec["replicas"]):
        settings = LearnerSettings.read({**given, "TROUPE_NODE_RANK": str(node)})
        assert settings.nodes == spec["replicas"]
    with pytest.raises(SettingsError, match="TROUPE_NODES"):
        READERS["learner"]({**given, "TROUPE_NODE_RANK": str(spec["replicas"])})


def test_agents_dial_the_first_pod_at_a_port_that_is_its_own() -> None:
    spec, given = learner_of(render(GANG))
    host, port = split_address(given["TROUPE_GANG_ADDRESS"])
    assert host == f"learner-0.{spec['serviceName']}"
    ports = {each["name"]: each["containerPort"] for each in spec["template"]["spec"]["containers"][0]["ports"]}
    assert ports["gang"] == port
    assert len(set(ports.values())) == len(ports)


def test_each_pod_has_a_gpu_for_each_of_its_ranks() -> None:
    spec, given = learner_of(render(GANG))
    gpus = int(spec["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert gpus == int(given["TROUPE_RANKS"]) > 1


def test_agents_show_the_token_of_the_learners_own_role() -> None:
    spec, given = learner_of(render(GANG))
    container = spec["template"]["spec"]["containers"][0]
    (mount,) = [
        each for each in container["volumeMounts"] if given["TROUPE_TOKEN_FILE"].startswith(f"{each['mountPath']}/")
    ]
    (volume,) = [each for each in spec["template"]["spec"]["volumes"] if each["name"] == mount["name"]]
    assert volume["secret"]["secretName"] == "learner-token"


def test_a_store_that_pods_of_several_nodes_mount_can_be_mounted_by_many() -> None:
    assert render(GANG).one("PersistentVolumeClaim", "store")["spec"]["accessModes"] == ["ReadWriteMany"]


def test_the_component_makes_two_pods_of_any_overlay() -> None:
    spec, given = learner_of(render("local+learner-gang"))
    assert spec["replicas"] == 2
    assert [LearnerSettings.read({**given, "TROUPE_NODE_RANK": str(node)}).node_rank for node in (0, 1)] == [0, 1]
