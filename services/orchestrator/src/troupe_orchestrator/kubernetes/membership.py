"""Keeps a fleet's members equal to the endpoints of a Service.

Compared are whole sets, each of which replaces the last: what was missed is mended by the next. A pod that is terminating is
no member any more: its turns in flight may end, it gets no new ones. One that is not ready is a member without traffic,
so that it has the weights before it gets any. The same address with another pod behind it is another member.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, TypeVar

from troupe_kubernetes.endpoints import Endpoint, endpoints, port_names
from troupe_kubernetes.mirror import Snapshot

from troupe_orchestrator.kubernetes.addresses import ServiceAddress
from troupe_orchestrator.kubernetes.notices import Notice
from troupe_orchestrator.rotation import Member, Rotation

M = TypeVar("M", bound=Member)

_NONE: Final = {"executor": "NoExecutors", "designer": "NoDesigners", "sandbox": "NoSandboxes"}


class Membership(Generic[M]):
    """The members of one fleet. Used on the event loop only.

    Args:
        make: a member for a host:port, with a channel of its own.
    """

    def __init__(self, rotation: Rotation[M], address: ServiceAddress, make: Callable[[str], M]) -> None:
        self._rotation = rotation
        self._address = address
        self._make = make
        self._known: dict[str, tuple[Endpoint, M]] = {}
        self._ports: list[str] = []
        self._asked = False
        rotation.watched = True

    def take(self, snapshot: Snapshot) -> None:
        """What the API server says now. While it is away the members stay as they were."""
        if snapshot.away:
            return
        self._asked = True
        self._ports = port_names(snapshot.objects)
        self._become(endpoints(snapshot.objects, self._address.port))

    def notice(self) -> Notice | None:
        """What is to be told of this service as a whole; None where it has replicas, or nobody knows yet."""
        if self._known or not self._asked:
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
            _NONE[service],
            f"Service {self._address.service} has no endpoint: work waits for a replica, and counts no fault meanwhile",
            f"kubectl scale it to 1 or more, or see why its pods do not start: kubectl get pods -l {_selector(service)}",
        )

    def _become(self, now: Mapping[str, Endpoint]) -> None:
        for uid, (endpoint, member) in list(self._known.items()):
            if uid not in now or now[uid].target != endpoint.target:
                del self._known[uid]
                self._rotation.leave(member, f"pod {endpoint.pod} is no endpoint of {self._address.service} any more")
        for uid, endpoint in now.items():
            if uid not in self._known:
                member = self._make(endpoint.target)
                self._known[uid] = (endpoint, member)
                self._rotation.join(member, endpoint.ready)
                continue
            before, member = self._known[uid]
            if before.ready != endpoint.ready:
                self._known[uid] = (endpoint, member)
                self._rotation.set_ready(member, endpoint.ready)


def _selector(service: str) -> str:
    return f"app.kubernetes.io/component={service}"


MembershipOf = Membership[Any]
