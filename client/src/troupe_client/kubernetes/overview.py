"""The pods of a deployment: whether each is ready, where it is, what it serves, and what keeps it from serving."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import grpc
from troupe_contracts.channel import connect
from troupe_contracts.errors import describe
from troupe_kubernetes.api import Api
from troupe_kubernetes.pods import PART_OF, SERVICES, is_ready, reason_of, restarts, service_of

from troupe_client.kubernetes.forwarding import forwarded_pod
from troupe_client.kubernetes.place import identity_for
from troupe_client.probe import details

MOST_ASKED: Final = 16
"""Pods that are asked what they serve: each costs a connection through the API server."""
_GRPC: Final = "grpc"


@dataclass(frozen=True, slots=True)
class PodReport:
    """One pod."""

    service: str
    pod: str
    node: str
    health: str
    """ready, not ready, ending, or the reason: Unschedulable, OOMKilled, …"""
    text: str = ""
    """Why it does not serve, or what it serves."""
    capacity: str = ""
    restarts: int = 0
    remedy: str = ""


async def pod_reports(api: Api) -> list[PodReport]:
    """A report of each pod, in the order of the services, and what those that are ready say of themselves."""
    listed = await asyncio.to_thread(api.get, api.namespaced("v1", "pods"), {"labelSelector": PART_OF})
    pods = sorted(listed["items"], key=_place)
    asked = [pod for pod in pods if is_ready(pod) and _port(pod) is not None][:MOST_ASKED]
    answers = dict(
        zip(
            (pod["metadata"]["name"] for pod in asked),
            await asyncio.gather(*(_asked(api, pod) for pod in asked)),
            strict=True,
        )
    )
    return [
        replace(report, text=answers[report.pod][0], capacity=answers[report.pod][1])
        if report.pod in answers
        else report
        for report in map(report_of, pods)
    ]


def report_of(pod: Mapping[str, Any]) -> PodReport:
    """What the API server says of a pod."""
    report = PodReport(
        service=service_of(pod) or "?",
        pod=pod["metadata"]["name"],
        node=(pod.get("spec") or {}).get("nodeName", ""),
        health="ready" if is_ready(pod) else "not ready",
        restarts=restarts(pod),
    )
    if "deletionTimestamp" in pod["metadata"]:
        return replace(report, health="ending")
    if (pod.get("status") or {}).get("phase") == "Succeeded":
        return replace(report, health="done")
    reason = reason_of(pod)
    if reason is None:
        return report
    return replace(report, health=reason.reason, text=reason.text, remedy=reason.remedy)


def serves(reports: Sequence[PodReport]) -> bool:
    """Whether each of the five services has a pod that is ready."""
    return set(SERVICES) <= {report.service for report in reports if report.health == "ready"}


async def _asked(api: Api, pod: Mapping[str, Any]) -> tuple[str, str]:
    port = _port(pod)
    assert port is not None
    async with (
        forwarded_pod(api, pod["metadata"]["name"], port) as target,
        connect(target, identity_for(service_of(pod))) as channel,
    ):
        try:
            return await details(service_of(pod), "", channel)
        except grpc.RpcError as error:
            return describe(error), ""


def _port(pod: Mapping[str, Any]) -> int | None:
    """Where it serves gRPC; None for one that is not of the five services."""
    if service_of(pod) not in SERVICES:
        return None
    containers = (pod.get("spec") or {}).get("containers") or ()
    ports = (port for container in containers for port in container.get("ports") or ())
    return next((int(port["containerPort"]) for port in ports if port.get("name") == _GRPC), None)


def _place(pod: Mapping[str, Any]) -> tuple[int, str]:
    service = service_of(pod)
    return (SERVICES.index(service) if service in SERVICES else len(SERVICES), pod["metadata"]["name"])
