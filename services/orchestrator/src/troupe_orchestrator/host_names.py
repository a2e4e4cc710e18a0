"""Fleets whose members are the addresses of a host name: `dns:///executor.example:50051`, one replica each.

The name is looked up every few seconds, and each answer replaces the last. A name server that does not answer changes
nothing; a name without addresses is a service without replicas, for which work waits. Who is ready DNS does not say: a
member serves once it is fit for work.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import structlog

from troupe_orchestrator.rotation import Member, Rotation

logger = structlog.get_logger()

SCHEME: Final = "dns:///"
_TARGET: Final = re.compile(r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?\.?):(?P<port>[0-9]{1,5})")
_LONGEST_LABEL: Final = 63
_LOOK_SECONDS: Final = 5.0
_NO_ADDRESS: Final = (socket.EAI_NONAME, socket.EAI_NODATA)

M = TypeVar("M", bound=Member)


@dataclass(frozen=True, slots=True)
class Host:
    """All addresses of a name, at one port."""

    name: str
    port: int

    async def look_up(self) -> frozenset[str]:
        """A host:port for each address; none where the name has none.

        Of two families only one counts: a process that listens to both would be two replicas.

        Raises:
            OSError: no name server says so or otherwise.
        """
        try:
            found = await asyncio.get_running_loop().getaddrinfo(self.name, self.port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            if error.errno in _NO_ADDRESS:
                return frozenset()
            raise
        old = {f"{address[0]}:{self.port}" for family, *_, address in found if family == socket.AF_INET}
        return frozenset(old or {f"[{address[0]}]:{self.port}" for *_, address in found})


def names_host(target: str) -> bool:
    """Whether a target names all addresses of a host, not one."""
    return target.startswith("dns:")


def parse_host(target: str) -> Host:
    """The host that a target names.

    Raises:
        ValueError: it is none.
    """
    matched = _TARGET.fullmatch(target.removeprefix(SCHEME)) if target.startswith(SCHEME) else None
    if (
        matched is None
        or max(map(len, matched["name"].split("."))) > _LONGEST_LABEL
        or not 0 < int(matched["port"]) < 1 << 16
    ):
        raise ValueError(f"{target!r} must be {SCHEME}NAME:PORT, with the number of a port")
    return Host(matched["name"], int(matched["port"]))


class Lookups(Generic[M]):
    """Keeps a fleet's members equal to the addresses of a name. Made and used on the event loop.

    Args:
        make: a member for a host:port, with a channel of its own.
        look_up: the addresses now; for tests, as `Host.look_up` otherwise.
    """

    def __init__(
        self,
        rotation: Rotation[M],
        host: Host,
        make: Callable[[str], M],
        look_up: Callable[[], Awaitable[frozenset[str]]] | None = None,
    ) -> None:
        self._rotation = rotation
        self._host = host
        self._make = make
        self._look_up = look_up or host.look_up
        self._members: dict[str, M] = {}
        self._away = False
        rotation.watched = True
        self._looking = asyncio.create_task(self._look_again(), name=f"{rotation.service}-addresses")

    async def look(self) -> None:
        """Ask once, and have the fleet be so."""
        try:
            now = await self._look_up()
        except OSError as error:
            if not self._away:
                logger.warning(
                    "no name server answers; members stay as last known", name=self._host.name, why=str(error)
                )
            self._away = True
            return
        self._away = False
        for target in self._members.keys() - now:
            self._rotation.leave(self._members.pop(target), f"{self._host.name} does not have its address any more")
        for target in sorted(now - self._members.keys()):
            self._members[target] = self._make(target)
            self._rotation.join(self._members[target])

    async def close(self) -> None:
        """Look up no more."""
        self._looking.cancel()
        await asyncio.gather(self._looking, return_exceptions=True)

    async def _look_again(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(_LOOK_SECONDS)
