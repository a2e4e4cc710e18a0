"""The cluster that the orchestrator runs in: its services' members, and what keeps them from serving.

The API server is asked in threads, and what it says is handed to the event loop. Nothing here is on the way of a step: while
the API server is away everything goes on with the members that were known last.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog
from troupe_kubernetes.api import Api, ClusterConfigError, Object
from troupe_kubernetes.endpoints import SERVICE_LABEL
from troupe_kubernetes.mirror import Mirror, Snapshot
from troupe_kubernetes.pods import PART_OF, Reason, reasons

from troupe_orchestrator.kubernetes.addresses import NoClusterError, parse_address
from troupe_orchestrator.kubernetes.membership import Change, Membership
from troupe_orchestrator.kubernetes.notices import Notice, Notices, of_pod
from troupe_orchestrator.rotation import Member, Rotation

logger = structlog.get_logger()

_LOOK_SECONDS: Final = 5.0
_AWAY_REMEDY: Final = "none needed for training: members stay as last known; see that the API server comes back"

M = TypeVar("M", bound=Member)
R = TypeVar("R")


async def open_api(kubeconfig: Path | None) -> Api:
    """The API server of this pod, or of a kubeconfig.

    Raises:
        NoClusterError: this is no pod, or the kubeconfig cannot be used.
    """
    try:
        if kubeconfig is None:
            return await asyncio.to_thread(Api.in_cluster)
        return await asyncio.to_thread(Api.from_kubeconfig, None, None, str(kubeconfig))
    except ClusterConfigError as error:
        raise NoClusterError(
            "targets name Services (k8s:///…), or TROUPE_CUSTOM_RESOURCES is true, and the API server cannot be asked: "
            f"{error}"
        ) from error


class Cluster:
    """What is watched. Opened and used on the event loop."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self._loop = asyncio.get_running_loop()
        self._mirrors: list[Mirror] = []
        self._memberships: list[Membership[Any]] = []
        self._reasons: Mapping[str, Reason] = {}
        self._pods: tuple[Object, ...] = ()
        self._away: dict[str, str] = {}
        self._others: dict[str, Notice] = {}
        self._listeners: list[Callable[[Notice], None]] = []
        self._notices = Notices(self._tell)
        self._looking = asyncio.create_task(self._look_again(), name="kubernetes-notices")
        path = api.namespaced("v1", "pods")
        self._watch(path, {"labelSelector": PART_OF}, _read_pods, self._take_pods)

    @classmethod
    async def open(cls, kubeconfig: Path | None) -> Cluster:
        """The cluster of this pod, or of a kubeconfig.

        Raises:
            NoClusterError: this is no pod, or the kubeconfig cannot be used.
        """
        return cls(await open_api(kubeconfig))

    def follow(self, rotation: Rotation[M], target: str, make: Callable[[str], M]) -> None:
        """Have a fleet's members be the endpoints of the Service that a target names.

        Args:
            make: a member for a host:port, with a channel of its own.
        """
        address = parse_address(target)
        membership = Membership(rotation, address, make)
        self._memberships.append(membership)

        def take(change: Change) -> None:
            membership.take(change)
            self._look()

        path = self.api.namespaced("discovery.k8s.io/v1", "endpointslices", namespace=address.namespace)
        self._watch(path, {"labelSelector": f"{SERVICE_LABEL}={address.service}"}, membership.read, take)

    def on_notice(self, listener: Callable[[Notice], None]) -> None:
        """Have `listener` called with each notice, once."""
        self._listeners.append(listener)

    def notices_in_force(self) -> list[Notice]:
        """Those that listeners were called with and that are still the case."""
        return self._notices.in_force()

    def set_notice(self, key: str, notice: Notice | None) -> None:
        """What else is the case, by what it is about; None where it no longer is."""
        if notice is None:
            self._others.pop(key, None)
        else:
            self._others[key] = notice
        self._look()

    def own_object(self) -> Object | None:
        """What Events of this orchestrator are about: its workload, or else its pod; None while its pod is not known."""
        own = next((pod for pod in self._pods if pod["metadata"]["name"] == socket.gethostname()), None)
        if own is None:
            return None
        owner = next(iter(own["metadata"].get("ownerReferences") or ()), None)
        namespace = own["metadata"]["namespace"]
        if owner is None:
            return {"apiVersion": "v1", "kind": "Pod", "namespace": namespace} | _identity(own["metadata"])
        return {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "namespace": namespace} | _identity(owner)

    async def close(self) -> None:
        """Watch no more."""
        self._looking.cancel()
        await asyncio.gather(*(asyncio.to_thread(mirror.stop) for mirror in self._mirrors))

    def _watch(
        self, path: str, query: Mapping[str, str], read: Callable[[Snapshot], R], take: Callable[[R], None]
    ) -> None:
        """Keep a list: `read` makes of it what is wanted, in a thread, and `take` takes that, on the loop."""

        def taken(away: str, made: R) -> None:
            self._note_away(f"{path} {query}", away)
            take(made)

        def changed(snapshot: Snapshot) -> None:
            made = read(snapshot)
            # The last word of a mirror may come when the loop has ended.
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(taken, snapshot.away, made)

        mirror = Mirror(self.api, path, query, changed)
        self._mirrors.append(mirror)
        mirror.start()

    def _take_pods(self, read: tuple[tuple[Object, ...], Mapping[str, Reason]]) -> None:
        self._pods, self._reasons = read
        self._look()

    def _note_away(self, what: str, away: str) -> None:
        if not away:
            self._away.pop(what, None)
        elif what not in self._away:
            logger.warning("the API server cannot be asked; what was known last stays", what=what, why=away)
            self._away[what] = away

    def _look(self) -> None:
        """Tell what has become the case."""
        found = {f"pod/{name}": of_pod(reason) for name, reason in self._reasons.items()} | self._others
        for number, membership in enumerate(self._memberships):
            notice = membership.notice()
            if notice is not None:
                found[f"service/{number}"] = notice
        if self._away:
            found["api"] = Notice("ApiServerAway", next(iter(self._away.values())), _AWAY_REMEDY)
        self._notices.update(found)

    async def _look_again(self) -> None:
        """What lasts becomes worth telling though nothing changes."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self._look()

    def _tell(self, notice: Notice) -> None:
        logger.warning("the cluster", reason=notice.reason, message=notice.message, remedy=notice.remedy)
        for listener in self._listeners:
            listener(notice)


def _read_pods(snapshot: Snapshot) -> tuple[tuple[Object, ...], Mapping[str, Reason]]:
    """The pods as they were said to be last, and what keeps them from serving."""
    return snapshot.objects, reasons(snapshot.objects)


def _identity(named: Mapping[str, Any]) -> Object:
    return {"name": named["name"], "uid": named["uid"]}
