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
    return _merged((str(each["addressType"]), _of_slice(each, port_name)) for each in slices)


class EndpointReader:
    """Reads slices again and again: one that has not changed is not read twice. With thousands of endpoints, a change of one
    is one slice of a hundred.
    """

    def __init__(self, port_name: str) -> None:
        self._port_name = port_name
        self._read: dict[tuple[str, str], tuple[Endpoint, ...]] = {}

    def read(self, slices: Iterable[Mapping[str, Any]]) -> dict[str, Endpoint]:
        """As `endpoints`."""
        before, self._read = self._read, {}
        families = []
        for each in slices:
            key = (each["metadata"]["uid"], each["metadata"]["resourceVersion"])
            known = before.get(key)
            self._read[key] = _of_slice(each, self._port_name) if known is None else known
            families.append((str(each["addressType"]), self._read[key]))
        return _merged(families)


def _of_slice(found: Mapping[str, Any], port_name: str) -> tuple[Endpoint, ...]:
    """The endpoints of one slice; none where it has no such port."""
    port = next((port["port"] for port in found.get("ports") or () if port.get("name", "") == port_name), None)
    if port is None or found["addressType"] not in ("IPv4", "IPv6"):
        return ()
    read = (_endpoint(listed, port) for listed in found.get("endpoints") or ())
    return tuple(endpoint for endpoint in read if endpoint is not None)


def _merged(families: Iterable[tuple[str, tuple[Endpoint, ...]]]) -> dict[str, Endpoint]:
    """The endpoints of all slices, each with the family of its addresses."""
    found: dict[str, Endpoint] = {}
    for _, read in sorted(families, key=lambda each: each[0], reverse=True):
        for endpoint in read:
            known = found.get(endpoint.uid)
            if known is None or known.ready <= endpoint.ready:
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
