"""Rules that every pod of every overlay and component keeps: the restricted standard and our own."""

from typing import Any, Final

import pytest
from rendered.overlays import RENDERED, Manifests, Workload, render
from rendered.policies import selects

COMPONENT: Final = "app.kubernetes.io/component"
NUMBER_OF_USER: Final = 10001  # in /etc/passwd of every image: torch asks for its name
TOKEN_FOLDER: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
NODES_PROFILE: Final = {"type": "Localhost", "localhostProfile": "profiles/troupe-sandbox.json"}
HOLDS_A_TOKEN: Final = {"orchestrator", "credentials"}


def workloads() -> list[Any]:
    """One parameter per workload of each overlay; rendered when the tests are collected, or skipped then."""
    try:
        return [
            pytest.param(overlay, each, id=f"{overlay}-{each.name}")
            for overlay in RENDERED
            for each in render(overlay).workloads
        ]
    except pytest.skip.Exception as skipped:
        return [pytest.param("", None, marks=pytest.mark.skip(reason=str(skipped)))]


each_workload = pytest.mark.parametrize(("overlay", "workload"), workloads())


@each_workload
def test_its_pods_keep_the_restricted_standard(overlay: str, workload: Workload) -> None:
    pod = workload.pod
    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] == NUMBER_OF_USER
    own_profile = (overlay, workload.name) == ("local+sandbox-userns", "sandbox")
    assert context["seccompProfile"] == (NODES_PROFILE if own_profile else {"type": "RuntimeDefault"})
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    for container in workload.containers:
        own = container["securityContext"]
        assert own["allowPrivilegeEscalation"] is False, container["name"]
        assert own["capabilities"] == {"drop": ["ALL"]}, container["name"]
        assert own["readOnlyRootFilesystem"] is True, container["name"]
        assert not {"privileged", "runAsUser", "runAsNonRoot", "seccompProfile", "procMount"} & own.keys()
        assert not any("hostPort" in port for port in container.get("ports", ()))


@each_workload
def test_its_volumes_are_of_kinds_that_the_standard_allows_and_have_a_limit(overlay: str, workload: Workload) -> None:
    for volume in workload.pod["volumes"]:
        (kind,) = volume.keys() - {"name"}
        assert kind in {"emptyDir", "configMap", "secret", "projected", "persistentVolumeClaim"}, volume
        assert kind != "emptyDir" or volume["emptyDir"].get("sizeLimit"), volume


@each_workload
def test_every_mount_is_of_a_volume_and_every_volume_is_mounted(overlay: str, workload: Workload) -> None:
    declared = {volume["name"] for volume in workload.pod["volumes"]}
    declared |= {claim["metadata"]["name"] for claim in workload.spec.get("volumeClaimTemplates", ())}
    mounted = {mount["name"] for each in workload.containers for mount in each.get("volumeMounts", ())}
    assert mounted == declared
    for container in workload.containers:
        paths = [mount["mountPath"] for mount in container.get("volumeMounts", ())]
        assert len(paths) == len(set(paths)), container["name"]


@each_workload
def test_it_has_a_service_account_of_its_own_and_a_token_only_if_it_calls_the_api(
    overlay: str, workload: Workload
) -> None:
    pod = workload.pod
    assert pod["serviceAccountName"] == workload.name
    assert render(overlay).one("ServiceAccount", workload.name)["automountServiceAccountToken"] is False
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    projected = [volume["name"] for volume in pod["volumes"] if "projected" in volume]
    mounted = {mount["mountPath"] for each in workload.containers for mount in each.get("volumeMounts", ())}
    assert (TOKEN_FOLDER in mounted) == bool(projected) == (workload.name in HOLDS_A_TOKEN)


@each_workload
def test_its_images_have_a_tag_that_stays(overlay: str, workload: Workload) -> None:
    for container in workload.containers:
        _, _, tag = container["image"].rpartition("/")[2].partition(":")
        assert tag not in ("", "latest"), container["image"]


@each_workload
def test_every_container_says_what_memory_it_may_have(overlay: str, workload: Workload) -> None:
    for container in workload.containers:
        resources = container["resources"]
        assert {"cpu", "memory"} <= resources["requests"].keys(), container["name"]
        assert "memory" in resources["limits"], container["name"]
        # A limit on CPU throttles while cores idle.
        assert "cpu" not in resources["limits"], container["name"]


@each_workload
def test_settings_are_variables_never_arguments(overlay: str, workload: Workload) -> None:
    for container in workload.containers:
        assert "args" not in container, container["name"]
        assert "command" not in container or container["name"] != workload.name or not workload.serves


@each_workload
def test_what_serves_is_probed_and_has_a_budget_that_lets_nodes_drain(overlay: str, workload: Workload) -> None:
    if not workload.serves:
        return
    (container,) = workload.pod["containers"]
    ports = {port["name"] for port in container["ports"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[probe].get("httpGet") or container[probe].get("tcpSocket")
        assert asked is None or asked["port"] in ports, probe
    # Out of rotation is not dead: what says "not serving" must not have the pod killed.
    assert "httpGet" not in container["livenessProbe"]
    budgets = [
        each["spec"]
        for each in render(overlay).of("PodDisruptionBudget")
        if selects(each["spec"]["selector"], workload.labels)
    ]
    (budget,) = budgets
    assert budget["maxUnavailable"] == 1
    assert "minAvailable" not in budget


@each_workload
def test_its_selector_matches_its_own_pods_and_no_others(overlay: str, workload: Workload) -> None:
    if not workload.serves:
        return
    selector = workload.spec["selector"]
    assert [each.name for each in render(overlay).workloads if selects(selector, each.labels)] == [workload.name]


@each_workload
def test_a_pod_that_ends_has_time_to_leave_the_service_and_to_drain(overlay: str, workload: Workload) -> None:
    if not workload.serves or workload.name == "postgres":
        return
    (container,) = workload.pod["containers"]
    leaving = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    draining = float(render(overlay).environment(workload, container)["TROUPE_DRAIN_SECONDS"])
    assert leaving + draining + 10 == workload.pod["terminationGracePeriodSeconds"]


def test_what_takes_a_gpu_is_replaced_without_a_surge(manifests: Manifests) -> None:
    for workload in manifests.workloads:
        takes_one = any("nvidia.com/gpu" in each["resources"]["limits"] for each in workload.containers)
        if takes_one and workload.kind == "Deployment":
            assert workload.spec["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


def test_the_sandbox_has_neither_secret_nor_token_nor_the_store(manifests: Manifests) -> None:
    (sandbox,) = [each for each in manifests.workloads if each.name == "sandbox"]
    # But its own certificate, where there is TLS: who it is, and no right to call anybody.
    volumes = [each for each in sandbox.pod["volumes"] if each.get("secret", {}).get("secretName") != "sandbox-tls"]
    assert {kind for each in volumes for kind in each.keys() - {"name"}} == {"emptyDir", "configMap"}
    assert not any("secretKeyRef" in str(container) for container in sandbox.containers)


def test_the_local_overlay_asks_for_less_than_one_and_a_half_cores() -> None:
    def cores(container: dict[str, Any]) -> float:
        asked = str(container["resources"]["requests"]["cpu"])
        return float(asked.removesuffix("m")) / 1000 if asked.endswith("m") else float(asked)

    # As the scheduler counts: a pod's init containers run one after another, before the others.
    total = sum(
        max(
            sum(map(cores, each.pod["containers"])),
            *map(cores, each.pod.get("initContainers", [{"resources": {"requests": {"cpu": "0"}}}])),
        )
        for each in render("local").workloads
    )
    assert total < 1.5


def test_nobody_but_the_orchestrator_and_the_job_has_rights_and_none_of_them_everywhere(manifests: Manifests) -> None:
    assert not manifests.of("ClusterRole")
    assert not manifests.of("ClusterRoleBinding")
    given = {
        (subject["name"], binding["roleRef"]["name"])
        for binding in manifests.of("RoleBinding")
        for subject in binding["subjects"]
    }
    (orchestrator,) = [each for each in manifests.workloads if each.name == "orchestrator"]
    settings = manifests.environment(orchestrator, orchestrator.pod["containers"][0])
    of_components = {
        ("orchestrator", "orchestrator-custom-resources"): bool(manifests.of("CustomResourceDefinition")),
        ("orchestrator", "orchestrator-scaling"): settings.get("TROUPE_SCALING") == "stage",
    }
    assert given == {
        ("orchestrator", "orchestrator"),
        ("credentials", "credentials"),
        *(binding for binding, wanted in of_components.items() if wanted),
    }


def test_the_orchestrator_can_make_no_pods_and_read_no_secrets(manifests: Manifests) -> None:
    rights = {
        (resource, verb)
        for role in manifests.of("Role")
        if role["metadata"]["name"] != "credentials"
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    looks = {"list", "watch"}
    assert {verb for resource, verb in rights if resource == "pods"} == looks
    assert not {resource for resource, _ in rights} & {"secrets", "jobs", "nodes", "pods/exec", "*"}
    assert "*" not in {verb for _, verb in rights}
    assert {resource for resource, verb in rights if verb not in looks} <= {
        "events",
        "deployments/scale",
        "trainingruns/status",
        "evaljobs/status",
    }


def test_every_engine_reads_the_checkpoints_that_the_learner_writes(manifests: Manifests) -> None:
    """An evaluation of a checkpoint names its folder, and each engine reads it."""
    seen = {
        each.name: [
            (volume["persistentVolumeClaim"]["claimName"], mount["mountPath"], mount.get("readOnly", False))
            for volume in each.pod["volumes"]
            for mount in each.pod["containers"][0]["volumeMounts"]
            if mount["name"] == volume["name"] == "store"
        ]
        for each in manifests.workloads
        if each.name in ("designer", "executor", "learner", "orchestrator")
    }
    engines = {name for name in seen if name in ("designer", "executor")}
    assert engines
    assert seen == {name: [("store", "/store", name in engines)] for name in seen}


def test_the_namespace_enforces_the_restricted_standard(manifests: Manifests) -> None:
    (namespace,) = manifests.of("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    inside = [each for each in manifests.objects if each["kind"] not in ("Namespace", "CustomResourceDefinition")]
    assert {each["metadata"].get("namespace") for each in inside} == {"troupe"}
