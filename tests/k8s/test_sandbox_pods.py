"""The sandbox's pods: what their programs may come to fits into their memory, and the component with user namespaces."""

import json
import re
from argparse import Namespace
from typing import Final

import pytest
import yaml
from rendered.overlays import K8S, OVERLAYS, Manifests, Workload, render
from troupe_orchestrator.run_config import Budgets
from troupe_sandbox.__main__ import parse_arguments

ROOT: Final = K8S.parent
LIMITS: Final = ROOT / "services/sandbox_rs/src/limits.rs"
OUTER: Final = ROOT / "services/sandbox_rs/src/layers/outer.rs"
UNITS: Final = {"Mi": 1 << 20, "Gi": 1 << 30}


def sandbox(manifests: Manifests) -> Workload:
    (found,) = [each for each in manifests.workloads if each.name == "sandbox"]
    return found


def options(manifests: Manifests) -> Namespace:
    workload = sandbox(manifests)
    return parse_arguments([], manifests.environment(workload, workload.pod["containers"][0]))


def memory_limit(manifests: Manifests) -> int:
    limit = sandbox(manifests).pod["containers"][0]["resources"]["limits"]["memory"]
    return int(limit[:-2]) * UNITS[limit[-2:]]


def default_memory() -> int:
    """Of a program, which is the same for scripts, tools and tests."""
    defaults = re.findall(r"default: Limits \{[^}]*memory_bytes: (\d+) \* MIB", LIMITS.read_text())
    assert len(defaults) == 3
    assert len(set(defaults)) == 1
    return int(defaults[0]) << 20


def promised(manifests: Manifests) -> int:
    """Bytes that programs may come to together, as the service reckons them at its start."""
    given = options(manifests)
    each = min(default_memory(), (given.program_memory or 1 << 30) << 20)
    return int((given.workflow_slots + given.test_slots + given.tool_slots) * each)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_programs_together_stay_within_their_share_of_the_pods_memory(overlay: str) -> None:
    share = re.search(r"PROMISED_PERCENT: u64 = (\d+);", OUTER.read_text())
    assert share is not None
    manifests = render(overlay)
    assert promised(manifests) <= memory_limit(manifests) // 100 * int(share[1])
    assert "memory_headroom" in options(manifests).require_layers.split(",")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_number_of_slots_is_left_to_the_cores_of_a_node(overlay: str) -> None:
    workload = sandbox(render(overlay))
    given = render(overlay).environment(workload, workload.pod["containers"][0])
    assert {"TROUPE_WORKFLOW_SLOTS", "TROUPE_TEST_SLOTS", "TROUPE_TOOL_SLOTS"} <= given.keys()


@pytest.mark.parametrize("config", ["run", "serving"])
def test_the_starters_programs_ask_for_no_more_than_its_sandbox_gives(config: str) -> None:
    given = yaml.safe_load((ROOT / f"starter/src/troupe_starter/config/{config}.yaml").read_text())["budgets"]
    assert Budgets.model_validate(given).memory_bytes <= options(render("local")).program_memory << 20


def test_with_user_namespaces_whatever_is_ignored_stops_the_start() -> None:
    manifests = render("local+sandbox-userns")
    given, pod = options(manifests), sandbox(manifests).pod
    assert pod["hostUsers"] is False
    assert given.profile == "full"
    required = set(given.require_layers.split(","))
    assert {"user_namespace", "private_root", "outer_user_namespace", "memory_headroom"} <= required


@pytest.mark.parametrize("name", ["local", "local+sandbox-userns"])
def test_the_layers_that_are_required_are_known_to_the_sandbox(name: str) -> None:
    layers = (OUTER.parent / "mod.rs").read_text() + OUTER.read_text()
    known = set(re.findall(r'(?:name: |MEMORY_HEADROOM: &str = )"([a-z_]+)"', layers))
    assert set(options(render(name)).require_layers.split(",")) <= known


def test_the_nodes_profile_lets_programs_have_namespaces_and_nothing_of_the_kernels_own() -> None:
    profile = json.loads((K8S / "components/sandbox-userns/seccomp.json").read_text())
    refused = {name for rule in profile["syscalls"] for name in rule["names"]}
    assert not {"clone", "unshare", "mount", "umount2", "pivot_root", "seccomp", "landlock_restrict_self"} & refused
    assert {"bpf", "ptrace", "process_vm_readv", "keyctl", "userfaultfd", "io_uring_setup", "kexec_load"} <= refused
    assert {rule["action"] for rule in profile["syscalls"]} == {"SCMP_ACT_ERRNO"}


def test_the_profile_is_where_the_pod_looks_for_it() -> None:
    seccomp = sandbox(render("local+sandbox-userns")).pod["securityContext"]["seccompProfile"]
    assert seccomp["type"] == "Localhost"
    component = (K8S / "components/sandbox-userns/kustomization.yaml").read_text()
    assert f"/var/lib/kubelet/seccomp/{seccomp['localhostProfile']}" in component
