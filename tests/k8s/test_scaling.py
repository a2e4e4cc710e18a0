"""The component with which the orchestrator sets replicas: what it reads, what it may, and that nobody else sets them."""

from typing import Final, get_args

import pytest
from rendered.overlays import Manifests, Workload, render
from troupe_orchestrator.kubernetes.scaling import ReplicaPlan, Scaled
from troupe_orchestrator.run_config import Trains, parse_config
from troupe_orchestrator.settings import OrchestratorSettings

SCALED: Final = frozenset(get_args(Scaled))
PHASES: Final = (*(each.value for each in Trains), "idle")


@pytest.fixture
def scaling() -> Manifests:
    return render("local+scaling-by-stage")


def orchestrator_of(manifests: Manifests) -> Workload:
    (found,) = [each for each in manifests.workloads if each.name == "orchestrator"]
    return found


def plan_of(manifests: Manifests) -> ReplicaPlan:
    """By the way that the orchestrator reads it: setting, mount, volume, ConfigMap."""
    workload = orchestrator_of(manifests)
    (container,) = workload.pod["containers"]
    settings = OrchestratorSettings.read(manifests.environment(workload, container))
    assert settings.scaling == "stage"
    assert settings.replicas is not None
    (mount,) = [each for each in container["volumeMounts"] if each["mountPath"] == str(settings.replicas.parent)]
    (volume,) = [each for each in workload.pod["volumes"] if each["name"] == mount["name"]]
    written = manifests.one("ConfigMap", volume["configMap"]["name"])["data"][settings.replicas.name]
    return parse_config(written, ReplicaPlan)


def test_the_orchestrator_has_a_plan_that_says_of_every_service_how_many_there_are_in_every_phase(
    scaling: Manifests,
) -> None:
    plan = plan_of(scaling)
    for phase in PHASES:
        assert plan.wanted(phase).keys() == {plan.workloads[service] for service in SCALED}, phase


def test_the_manifests_of_what_it_scales_do_not_say_how_many_there_are_and_all_others_do(scaling: Manifests) -> None:
    silent = {each.name for each in scaling.workloads if each.serves and "replicas" not in each.spec}
    assert silent == SCALED
    assert not any("replicas" not in each.spec for each in render("local").workloads if each.serves)


def test_it_may_set_the_replicas_of_all_that_its_plan_names(scaling: Manifests) -> None:
    may = {
        f"{resource.removesuffix('/scale')}/{name}"
        for rule in scaling.one("Role", "orchestrator-scaling")["rules"]
        for resource in rule["resources"]
        if resource.endswith("/scale") and "patch" in rule["verbs"]
        for name in rule["resourceNames"]
    }
    plan = plan_of(scaling)
    named = {workload for phase in PHASES for workload in plan.wanted(phase)}
    assert named <= may
    assert named == {f"deployments/{each.name}" for each in scaling.workloads if each.name in SCALED}


def test_with_one_engine_deployment_for_both_roles_nothing_else_loses_its_number() -> None:
    scaled = render("cluster+scaling-by-stage")
    assert {each.name for each in scaled.workloads if each.serves and "replicas" not in each.spec} == {
        "designer",
        "sandbox",
    }
