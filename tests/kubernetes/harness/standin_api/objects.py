"""Objects as a real API server has them, in the parts that matter."""

import itertools
from typing import Any

Object = dict[str, Any]
_versions = itertools.count(1)
SLICES = "/apis/discovery.k8s.io/v1/namespaces/troupe/endpointslices"
PODS = "/api/v1/namespaces/troupe/pods"
TRAINING_RUNS = "/apis/troupe.dev/v1/namespaces/troupe/trainingruns"
EVAL_JOBS = "/apis/troupe.dev/v1/namespaces/troupe/evaljobs"


def endpoint(
    address: str, pod: str, ready: bool | None = True, terminating: bool | None = None, uid: str = ""
) -> Object:
    """One entry of a slice."""
    return {
        "addresses": [address],
        "conditions": {"ready": ready and not terminating, "serving": ready, "terminating": terminating},
        "targetRef": {"kind": "Pod", "name": pod, "uid": uid or f"uid-{pod}"},
    }


def endpoint_slice(
    service: str, *endpoints: Object, name: str = "", port: int = 50051, port_name: str = "grpc", family: str = "IPv4"
) -> Object:
    """A slice of a Service."""
    name = name or f"{service}-1"
    return {
        "metadata": {
            "name": name,
            "uid": f"slice-{name}",
            "resourceVersion": str(next(_versions)),
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": family,
        "ports": [{"name": "http", "port": 9090}, {"name": port_name, "port": port}],
        "endpoints": list(endpoints),
    }


def pod(name: str, service: str, status: Object | None = None, **metadata: Any) -> Object:
    """A pod of one of the services."""
    labels = {"app.kubernetes.io/part-of": "troupe", "app.kubernetes.io/component": service}
    found = {"name": name, "namespace": "troupe", "uid": f"uid-{name}", "labels": labels, **metadata}
    return {"metadata": found, "spec": {}, "status": status or running()}


def running(ready: bool = True, **container: Any) -> Object:
    """Status of a pod that runs."""
    state = {"name": "main", "ready": ready, "restartCount": 0, "state": {"running": {}}, **container}
    condition = {"type": "Ready", "status": "True" if ready else "False"}
    return {"phase": "Running", "conditions": [condition], "containerStatuses": [state]}


def unschedulable(message: str) -> Object:
    """Status of a pod that no node takes."""
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return {"phase": "Pending", "conditions": [condition]}


def waiting(reason: str, message: str = "", **container: Any) -> Object:
    """Status of a pod whose container waits."""
    state = {"name": "main", "ready": False, "image": "troupe/main:1", **container}
    state["state"] = {"waiting": {"reason": reason, "message": message}}
    return {"phase": "Pending", "conditions": [], "containerStatuses": [state]}


def custom_resource(name: str, desired: str = "Running", **spec: Any) -> Object:
    """A TrainingRun or an EvalJob, as `kubectl apply` sends it and the API server fills it in."""
    return {"metadata": {"name": name}, "spec": {"desiredState": desired, **spec}}
