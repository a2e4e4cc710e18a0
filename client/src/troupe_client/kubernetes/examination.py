"""Whether a cluster can run a deployment, and what is in the way: rights, storage, isolation, devices, clocks.

Each check is a pure function of what the API server says. What this user may not look at is said to be not looked at.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

from troupe_kubernetes.api import Api, ApiError, ApiUnreachableError
from troupe_kubernetes.pods import PART_OF, reasons

from troupe_client.doctor.findings import Finding, error, ok, size, warning

Objects = Sequence[Mapping[str, Any]]

OLDEST: Final = (1, 30)
"""`preStop: sleep` is on from there."""
GPU: Final = "nvidia.com/gpu"
SKEW_SECONDS: Final = 5.0
_SILENT_SECONDS: Final = 60.0
_LEVEL: Final = "pod-security.kubernetes.io/enforce"
_DEFAULT_CLASS: Final = "storageclass.kubernetes.io/is-default-class"

_INSTALLS: Final = (
    ("", "services"),
    ("", "configmaps"),
    ("", "serviceaccounts"),
    ("", "persistentvolumeclaims"),
    ("apps", "deployments"),
    ("apps", "statefulsets"),
    ("policy", "poddisruptionbudgets"),
    ("networking.k8s.io", "networkpolicies"),
    ("rbac.authorization.k8s.io", "roles"),
    ("rbac.authorization.k8s.io", "rolebindings"),
)
"""Group and resource of what `kubectl apply -k` creates and changes in the namespace."""
_USES: Final = (
    ("get", "", "services"),
    ("list", "", "pods"),
    ("list", "discovery.k8s.io", "endpointslices"),
    ("create", "", "pods/portforward"),
)
"""What this command needs to find the orchestrator."""


async def examine(api: Api) -> list[Finding]:
    """What every check says, in the order in which a reader wants it."""
    return await asyncio.to_thread(_examine, api)


def _examine(api: Api) -> list[Finding]:
    try:
        version = api.get("/version")
        date, now = api.date(), time.time()
    except (ApiError, ApiUnreachableError) as failure:
        return [error("API server", str(failure), "see that the kubeconfig and the network are right")]
    found = [server(api.server, version), clock(date, now)]
    found += _looked("rights", lambda: rights(_missing(api)))
    found += _looked("namespace", lambda: [namespace(api)])
    found += _looked(
        "storage",
        lambda: storage(
            api.get("/apis/storage.k8s.io/v1/storageclasses")["items"],
            api.get(api.namespaced("v1", "persistentvolumeclaims"))["items"],
        ),
    )
    found += _looked("nodes", lambda: nodes(api.get("/api/v1/nodes")["items"]))
    found += _looked(
        "node clocks",
        lambda: node_clocks(api.get(api.namespaced("coordination.k8s.io/v1", "leases", "", _LEASES))["items"], date),
    )
    selected = {"labelSelector": PART_OF}
    found += _looked("pods", lambda: pods(api.get(api.namespaced("v1", "pods"), selected)["items"], api.namespace))
    return found


_LEASES: Final = "kube-node-lease"


def _looked(check: str, look: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return look()
    except (ApiError, ApiUnreachableError) as failure:
        return [warning(check, f"not looked at: {failure}", "ask who may")]


def server(url: str, version: Mapping[str, Any]) -> Finding:
    """Whether the API server is new enough."""
    said = str(version.get("gitVersion", ""))
    matched = re.match(r"v(\d+)\.(\d+)", said)
    if matched is None:
        return warning("API server", f"{url} says version {said!r}", "see that it is Kubernetes")
    if (int(matched[1]), int(matched[2])) < OLDEST:
        return error("API server", f"{url} is {said}, {'.'.join(map(str, OLDEST))} or newer is needed", "upgrade it")
    return ok("API server", f"{url}, {said}")


def clock(date: str, now: float) -> Finding:
    """This machine's clock against the API server's, which is told to the second."""
    if not date:
        return warning("clock", "the API server tells no time", "see that NTP runs on all machines")
    skew = now - parsedate_to_datetime(date).timestamp()
    if abs(skew) > SKEW_SECONDS:
        where = "ahead of" if skew > 0 else "behind"
        return error(
            "clock", f"this machine is {abs(skew):.0f} s {where} the API server", "start an NTP service on both"
        )
    return ok("clock", f"within {SKEW_SECONDS:g} s of the API server's")


def node_clocks(leases: Objects, date: str) -> list[Finding]:
    """The nodes' clocks, as their heartbeats have them: one from the future is of a node that is ahead."""
    reference = parsedate_to_datetime(date).timestamp()
    renewed = {each["metadata"]["name"]: _seconds(each["spec"].get("renewTime", "")) for each in leases}
    ahead = {name: at - reference for name, at in renewed.items() if at - reference > SKEW_SECONDS}
    silent = sorted(name for name, at in renewed.items() if reference - at > _SILENT_SECONDS)
    found = [
        error(
            "node clocks", f"{name} is at least {seconds:.0f} s ahead of the API server", "start an NTP service there"
        )
        for name, seconds in sorted(ahead.items())
    ]
    if silent:
        text = f"{', '.join(silent)} sent no heartbeat for {_SILENT_SECONDS:g} s, or are behind"
        found.append(warning("node clocks", text, "see `kubectl get nodes`"))
    return found or [ok("node clocks", f"no heartbeat of {len(renewed)} nodes is from the future")]


def rights(missing: Sequence[str]) -> list[Finding]:
    """What this user may not do."""
    if missing:
        return [
            error(
                "rights", f"this user may not {', '.join(missing)}", "ask for a RoleBinding to `admin` in the namespace"
            )
        ]
    return [ok("rights", "this user may install, look and port-forward in the namespace")]


def pod_security(name: str, labels: Mapping[str, str]) -> Finding:
    """What a namespace enforces."""
    level = labels.get(_LEVEL, "")
    if level == "restricted":
        return ok("pod security", f"namespace {name} enforces restricted")
    said = f"enforces {level}" if level else "enforces nothing"
    remedy = f"kubectl label namespace {name} {_LEVEL}=restricted --overwrite"
    return warning("pod security", f"namespace {name} {said}: what runs there may be less isolated", remedy)


def storage(classes: Objects, claims: Objects) -> list[Finding]:
    """Where claims get their volumes from, and whether those of the namespace have theirs."""
    names = {each["metadata"]["name"]: each for each in classes}
    default = [
        name
        for name, each in names.items()
        if (each["metadata"].get("annotations") or {}).get(_DEFAULT_CLASS) == "true"
    ]
    if default:
        found = [ok("storage", f"claims are given volumes of StorageClass {default[0]}")]
    elif names:
        text = f"no StorageClass is the default one, of {', '.join(sorted(names))}"
        found = [warning("storage", text, "name one in the claim of components/store-pvc, or mark one as default")]
    else:
        found = [error("storage", "there is no StorageClass", "install a provisioner that makes volumes")]
    waiting = [each for each in claims if (each.get("status") or {}).get("phase") == "Pending"]
    found += [
        error(
            "storage",
            f"claim {each['metadata']['name']} has no volume yet"
            + (
                "" if (wanted := each["spec"].get("storageClassName", "")) in names else f": no StorageClass {wanted!r}"
            ),
            f"kubectl describe pvc {each['metadata']['name']}",
        )
        for each in waiting
    ]
    return found


def nodes(listed: Objects) -> list[Finding]:
    """What the nodes have to give."""
    ready = [each for each in listed if _node_is_ready(each)]
    if not ready:
        return [error("nodes", f"none of {len(listed)} is ready", "see `kubectl get nodes`")]
    given = [each["status"]["allocatable"] for each in ready]
    cores = sum(_quantity(each.get("cpu", "0")) for each in given)
    memory = sum(_quantity(each.get("memory", "0")) for each in given)
    text = f"{len(ready)} of {len(listed)} ready: {cores:g} cores, {size(memory)}"
    devices = [int(each[GPU]) for each in given if int(each.get(GPU, 0))]
    found = [ok("nodes", text)]
    if devices:
        found.append(ok("GPUs", f"{sum(devices)} × {GPU} on {len(devices)} nodes"))
    else:
        remedy = "install the device plug-in, or use the overlay `local`, which needs none"
        found.append(warning("GPUs", f"no node has {GPU}", remedy))
    return found


def pods(listed: Objects, namespace: str) -> list[Finding]:
    """What keeps the pods that are there from serving."""
    if not listed:
        return [ok("pods", f"nothing is installed in namespace {namespace}")]
    told = [error("pods", each.text, each.remedy) for each in reasons(listed).values()]
    return told or [ok("pods", f"{len(listed)}, none with a known reason not to serve")]


def namespace(api: Api) -> Finding:
    """Whether the namespace is there, and what it enforces."""
    try:
        found = api.get(f"/api/v1/namespaces/{api.namespace}")
    except ApiError as failure:
        if failure.status != 404:
            raise
        return warning(
            "namespace", f"there is no namespace {api.namespace}", "`kubectl apply -k` of an overlay makes it"
        )
    return pod_security(api.namespace, found["metadata"].get("labels") or {})


def _missing(api: Api) -> list[str]:
    """What this user may not do, as `verb resource`."""
    wanted = [(verb, group, resource) for group, resource in _INSTALLS for verb in ("create", "patch")]
    return [f"{verb} {resource}" for verb, group, resource in [*wanted, *_USES] if not _may(api, verb, group, resource)]


def _may(api: Api, verb: str, group: str, resource: str) -> bool:
    name, _, part = resource.partition("/")
    asked = {"namespace": api.namespace, "verb": verb, "group": group, "resource": name, "subresource": part}
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": asked},
    }
    answer = api.send("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body)
    return bool(answer["status"]["allowed"])


def _node_is_ready(node: Mapping[str, Any]) -> bool:
    conditions: Iterable[Mapping[str, str]] = (node.get("status") or {}).get("conditions") or ()
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


_SUFFIXES: Final = {
    "m": 1e-3,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}


def _quantity(text: str) -> float:
    """A quantity as Kubernetes writes it: 3920m, 16Gi, 2."""
    matched = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", text)
    if matched is None or (matched[2] and matched[2] not in _SUFFIXES):
        return 0.0
    return float(matched[1]) * _SUFFIXES.get(matched[2], 1)


def _seconds(time_text: str) -> float:
    """Unix seconds of a time as the API has it."""
    return datetime.fromisoformat(time_text.replace("Z", "+00:00")).timestamp() if time_text else 0.0
