"""Keeps a fleet's members equal to the endpoints of a Service.

Compared are whole sets, each of which replaces the last: what was missed is mended by the next. A pod that is terminating is
no member any more: its turns in flight may end, it gets no new ones. One that is not ready is a member without traffic,
so that it has the weights before it gets any. The same address with another pod behind it is another member.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from troupe_kubernetes.endpoints import Endpoint, EndpointReader, port_names
from troupe_kubernetes.mirror import Snapshot

from troupe_orchestrator.kubernetes.addresses import ServiceAddress
from troupe_orchestrator.kubernetes.notices import Notice
from troupe_orchestrator.rotation import NO_MEMBERS, Member, Rotation

M = TypeVar("M", bound=Member)


@dataclass(frozen=True, slots=True)
class Change:
    """What differs from what was said before."""

    away: bool
    """The API server could not be asked."""
    ports: list[str]
    gone: tuple[Endpoint, ...] = ()
    come: tuple[Endpoint, ...] = ()
    turned: tuple[Endpoint, ...] = ()
    """Ready, or not any more."""


class Membership(Generic[M]):
    """The members of one fleet. `read` is for one thread, everything else for the event loop.

    Args:
        make: a member for a host:port, with a channel of its own.
    """

    def __init__(self, rotation: Rotation[M], address: ServiceAddress, make: Callable[[str], M]) -> None:
        self._rotation = rotation
        self._address = address
        self._make = make
        self._reader = EndpointReader(address.port)
        self._said: dict[str, Endpoint] = {}
        self._members: dict[str, M] = {}
        self._ports: list[str] = []
        self._asked = False
        rotation.watched = True

    def read(self, snapshot: Snapshot) -> Change:
        """What the API server says now, beside what it said before. While it is away nothing has changed."""
        if snapshot.away:
            return Change(True, [])
        before, now = self._said, self._reader.read(snapshot.objects)
        self._said = now
        same = {uid for uid, endpoint in now.items() if uid in before and before[uid].target == endpoint.target}
        return Change(
            away=False,
            ports=port_names(snapshot.objects),
            gone=tuple(endpoint for uid, endpoint in before.items() if uid not in same),
            come=tuple(endpoint for uid, endpoint in now.items() if uid not in same),
            turned=tuple(now[uid] for uid in same if now[uid].ready != before[uid].ready),
        )

    def take(self, change: Change) -> None:
        """Have the fleet be so."""
        if change.away:
            return
        self._asked = True
        self._ports = change.ports
        for endpoint in change.gone:
            why = f"pod {endpoint.pod} is no endpoint of {self._address.service} any more"
            self._rotation.leave(self._members.pop(endpoint.uid), why)
        for endpoint in change.come:
            self._members[endpoint.uid] = self._make(endpoint.target)
            self._rotation.join(self._members[endpoint.uid], endpoint.ready)
        for endpoint in change.turned:
            self._rotation.set_ready(self._members[endpoint.uid], endpoint.ready)

    def notice(self) -> Notice | None:
        """What is to be told of this service as a whole; None where it has replicas, or nobody knows yet."""
        if self._members or not self._asked:
            return None
        service = self._rotation.service
        if self._ports and self._address.port not in self._ports:
            return Notice(
                "NoSuchPort",
                f"Service {self._address.service} has no port named {self._address.port}, only "
                f"{', '.join(self._ports)}",
                f"name the port in the Service, or in TROUPE_{service.upper()}",
            )
        return Notice(
            NO_MEMBERS[service],
            f"Service {self._address.service} has no endpoint: work waits for a replica, and counts no fault meanwhile",
            f"kubectl scale it to 1 or more, or see why its pods do not start: kubectl get pods -l {_selector(service)}",
        )


def _selector(service: str) -> str:
    return f"app.kubernetes.io/component={service}"
