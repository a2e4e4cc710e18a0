"""Why a pod does not serve, from its status. Pure.

What the kubelet and the scheduler say is long and differs in numbers from one try to the next; what is told here is short
and stays the same as long as the cause does.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

COMPONENT_LABEL: Final = "app.kubernetes.io/component"
PART_OF: Final = "app.kubernetes.io/part-of=troupe"
SERVICES: Final = ("orchestrator", "designer", "executor", "sandbox", "learner")

_REMEDIES: Final = {
    "Unschedulable": "free what it needs, add a node, or ask for less",
    "ImagePullBackOff": "look at the image's name and at the registry",
    "ErrImagePull": "look at the image's name and at the registry",
    "ErrImageNeverPull": "load the image into the node",
    "InvalidImageName": "mend the image's name",
    "CreateContainerConfigError": "mend the ConfigMap or the Secret that it names",
    "CreateContainerError": "look at `kubectl describe pod`",
    "RunContainerError": "look at `kubectl describe pod`",
    "CrashLoopBackOff": "look at `kubectl logs --previous`",
    "OOMKilled": "raise the memory limit, or make the work smaller",
    "Evicted": "free the node's disk or memory",
    "Failed": "look at `kubectl describe pod`",
    "NotReady": "it is waited for; look at `kubectl logs`",
}
_INSUFFICIENT: Final = re.compile(r"Insufficient ([\w./-]*\w)", re.IGNORECASE)
_COUNTED: Final = re.compile(r"^\d+ ")
_QUIET: Final = frozenset({"ContainerCreating", "PodInitializing"})


@dataclass(frozen=True, slots=True)
class Reason:
    """Why one pod does not serve."""

    pod: str
    service: str
    reason: str
    """CamelCase: Unschedulable, OOMKilled, ImagePullBackOff, CrashLoopBackOff, …"""
    text: str
    """`learner-1 Pending: insufficient nvidia.com/gpu`"""
    remedy: str


def service_of(pod: Mapping[str, Any]) -> str:
    """The service that a pod is of; empty for another's."""
    return str((pod["metadata"].get("labels") or {}).get(COMPONENT_LABEL, ""))


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Whether it passes its readiness probes and is not on its way out."""
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return "deletionTimestamp" not in pod["metadata"] and any(
        each["type"] == "Ready" and each["status"] == "True" for each in conditions
    )


def restarts(pod: Mapping[str, Any]) -> int:
    """How often its containers were started again."""
    return sum(int(each.get("restartCount", 0)) for each in (pod.get("status") or {}).get("containerStatuses") or ())


def reasons(pods: Iterable[Mapping[str, Any]]) -> dict[str, Reason]:
    """What keeps pods from serving, by pod; those that serve, start or end as they should are left out."""
    found = {}
    for pod in pods:
        reason = reason_of(pod)
        if reason is not None:
            found[reason.pod] = reason
    return found


def reason_of(pod: Mapping[str, Any]) -> Reason | None:
    """What keeps one pod from serving; None where nothing that is known does."""
    status = pod.get("status") or {}
    if "deletionTimestamp" in pod["metadata"] or status.get("phase") == "Succeeded":
        return None
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return _reason(pod, "Unschedulable", f"Pending: {scheduling(condition.get('message', ''))}")
    if status.get("phase") == "Failed":
        name = status.get("reason") or "Failed"
        return _reason(pod, name, status.get("message") or _ended(status) or "it has failed")
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        told = _container(pod, container)
        if told is not None:
            return told
    return None


def scheduling(message: str) -> str:
    """What the scheduler lacks, without counts of nodes, which change with the cluster and not with the cause."""
    lacking = list(dict.fromkeys(_INSUFFICIENT.findall(message)))
    if lacking:
        return f"insufficient {', '.join(lacking)}"
    # "0/3 nodes are available: 2 node(s) had untolerated taint {…}, 1 node(s) … preemption: …"
    causes = message.partition("nodes are available:")[2].partition("preemption:")[0] or message
    named = [_COUNTED.sub("", each.strip(" .")) for each in causes.split(", ")]
    return ", ".join(dict.fromkeys(each.removeprefix("node(s) ") for each in named if each)) or "not scheduled yet"


def _container(pod: Mapping[str, Any], container: Mapping[str, Any]) -> Reason | None:
    state = container.get("state") or {}
    last = (container.get("lastState") or {}).get("terminated") or {}
    now = state.get("terminated") or {}
    waiting = state.get("waiting") or {}
    # A container that was killed for memory is started again: until it serves, what it does or waits for is not the cause.
    if "OOMKilled" in (now.get("reason"), not container.get("ready") and last.get("reason")):
        return _reason(pod, "OOMKilled", f"OOMKilled: container {container['name']} used more memory than its limit")
    reason = waiting.get("reason", "")
    if reason in _QUIET or (not reason and not now.get("exitCode")):
        return None
    if reason == "CrashLoopBackOff":
        return _reason(pod, reason, f"CrashLoopBackOff: container {container['name']} {_exit(last)}")
    if reason:
        return _reason(
            pod, reason, f"{reason}: {_first_line(waiting.get('message', '')) or container.get('image', '')}"
        )
    return _reason(pod, "Failed", f"container {container['name']} {_exit(now)}")


def _exit(terminated: Mapping[str, Any]) -> str:
    said = _first_line(terminated.get("message", ""))
    return f"ended with status {terminated.get('exitCode', 'unknown')}{f': {said}' if said else ''}"


def _ended(status: Mapping[str, Any]) -> str:
    for container in status.get("containerStatuses") or ():
        terminated = (container.get("state") or {}).get("terminated")
        if terminated:
            return f"container {container['name']} {_exit(terminated)}"
    return ""


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:300] if lines else ""


def _reason(pod: Mapping[str, Any], reason: str, text: str) -> Reason:
    name = pod["metadata"]["name"]
    remedy = _REMEDIES.get(reason, f"look at `kubectl describe pod {name}`")
    return Reason(name, service_of(pod), reason, f"{name} {text}", remedy)
