"""Who serves behind a Service, from its EndpointSlices. Pure.

One that is terminating gets nothing new and is left out. One that is not ready is there: it is to get the weights before it
gets traffic.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

SERVICE_LABEL = "kubernetes.io/service-name"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One replica."""

    uid: str
    """Of its pod: an address may be another pod's tomorrow."""
    target: str
    """host:port"""
    pod: str
    ready: bool
    """Its pod passes its readiness probe."""


def endpoints(slices: Iterable[Mapping[str, Any]], port_name: str) -> dict[str, Endpoint]:
    """Replicas that are not terminating, by uid. Of one in several slices the ready one counts, and IPv4."""
    found: dict[str, Endpoint] = {}
    for each in sorted(slices, key=lambda each: str(each["addressType"]), reverse=True):
        port = next((port["port"] for port in each.get("ports") or () if port.get("name", "") == port_name), None)
        if port is None or each["addressType"] not in ("IPv4", "IPv6"):
            continue
        for listed in each.get("endpoints") or ():
            endpoint = _endpoint(listed, port)
            if endpoint is not None and not (endpoint.uid in found and found[endpoint.uid].ready > endpoint.ready):
                found[endpoint.uid] = endpoint
    return found


def port_names(slices: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the ports that the slices have: what to say when the one that is wanted is not there."""
    return sorted({port.get("name", "") for each in slices for port in each.get("ports") or ()})


def _endpoint(listed: Mapping[str, Any], port: int) -> Endpoint | None:
    conditions = listed.get("conditions") or {}
    # As the API says: what is not known of serving is yes, of terminating no.
    if conditions.get("terminating") or not listed.get("addresses"):
        return None
    serving = conditions.get("serving")
    ready = conditions.get("ready", True) if serving is None else serving
    address = listed["addresses"][0]
    reference = listed.get("targetRef") or {}
    return Endpoint(
        uid=reference.get("uid") or address,
        target=f"[{address}]:{port}" if ":" in address else f"{address}:{port}",
        pod=reference.get("name") or address,
        ready=ready is not False,
    )
