"""Why a pod does not serve."""

from typing import Any

import pytest
from standin_api.objects import pod, running, unschedulable, waiting
from troupe_kubernetes.pods import is_ready, reason_of, reasons, restarts, scheduling

_OOM = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}


def told(status: dict[str, Any], **metadata: Any) -> str | None:
    reason = reason_of(pod("learner-1", "learner", status, **metadata))
    return None if reason is None else reason.text


def test_a_pod_without_a_node_says_what_is_lacking() -> None:
    message = (
        "0/2 nodes are available: 2 Insufficient nvidia.com/gpu. preemption: 0/2 nodes are available: 2 No victims."
    )
    assert told(unschedulable(message)) == "learner-1 Pending: insufficient nvidia.com/gpu"


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory.", "insufficient cpu, memory"),
        (
            "0/3 nodes are available: 1 node(s) had untolerated taint {gpu: true}, 2 node(s) didn't match Pod's node "
            "affinity/selector. preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling.",
            "had untolerated taint {gpu: true}, didn't match Pod's node affinity/selector",
        ),
        ("pod has unbound immediate PersistentVolumeClaims", "pod has unbound immediate PersistentVolumeClaims"),
        ("", "not scheduled yet"),
    ],
)
def test_the_schedulers_message_is_told_without_its_counts(message: str, said: str) -> None:
    assert scheduling(message) == said


def test_the_same_cause_reads_the_same_whatever_the_number_of_nodes() -> None:
    few = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu. preemption: 0/1 nodes are available."
    assert scheduling(few) == scheduling(few.replace("0/1", "0/128").replace("1 Ins", "128 Ins"))


@pytest.mark.parametrize(
    "status",
    [
        waiting("CrashLoopBackOff", "back-off", lastState=_OOM),
        running(False, lastState=_OOM, restartCount=1),
        {**running(False), "containerStatuses": [{"name": "main", "state": _OOM}]},
    ],
)
def test_one_that_was_killed_for_memory_says_so_until_it_serves_again(status: dict[str, Any]) -> None:
    assert told(status) == "learner-1 OOMKilled: container main used more memory than its limit"
    assert told(running(True, lastState=_OOM)) is None


def test_one_that_crashes_says_how_it_ended() -> None:
    last = {"terminated": {"exitCode": 1, "message": "Traceback\nValueError: no such model\n"}}
    text = told(waiting("CrashLoopBackOff", "back-off 5m0s", lastState=last))
    assert text == "learner-1 CrashLoopBackOff: container main ended with status 1: ValueError: no such model"


def test_one_without_an_image_names_it() -> None:
    assert told(waiting("ImagePullBackOff")) == "learner-1 ImagePullBackOff: troupe/main:1"
    text = told(waiting("ErrImagePull", "rpc error: not found"))
    assert text == "learner-1 ErrImagePull: rpc error: not found"


def test_an_init_container_counts_too() -> None:
    status = {"phase": "Pending", "initContainerStatuses": waiting("ErrImageNeverPull")["containerStatuses"]}
    assert told(status) == "learner-1 ErrImageNeverPull: troupe/main:1"


def test_one_that_was_evicted_says_why() -> None:
    evicted = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: ephemeral-storage."}
    assert told(evicted) == "learner-1 The node was low on resource: ephemeral-storage."


@pytest.mark.parametrize(
    "status", [running(), running(False), waiting("ContainerCreating"), waiting("PodInitializing")]
)
def test_nothing_is_said_of_one_that_runs_or_starts(status: dict[str, Any]) -> None:
    assert told(status) is None


def test_nothing_is_said_of_one_that_is_on_its_way_out() -> None:
    assert told(waiting("CrashLoopBackOff"), deletionTimestamp="2026-01-01T00:00:00Z") is None


def test_reasons_are_by_pod_and_know_their_service() -> None:
    found = reasons([pod("a", "executor"), pod("b", "sandbox", waiting("ImagePullBackOff"))])
    assert {name: each.service for name, each in found.items()} == {"b": "sandbox"}


def test_readiness_and_restarts_are_read_off_the_status() -> None:
    assert is_ready(pod("a", "executor"))
    assert not is_ready(pod("a", "executor", running(False)))
    assert not is_ready(pod("a", "executor", deletionTimestamp="2026-01-01T00:00:00Z"))
    assert restarts(pod("a", "executor", running(restartCount=3))) == 3
