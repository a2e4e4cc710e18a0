"""Fleets whose members are the addresses of a host name: `dns:///executor.example:50051`, one replica each.

The name is looked up every few seconds, and each answer replaces the last. A name server that does not answer changes
nothing; a name without addresses is a service without replicas, for which work waits. Who is ready DNS does not say: a
member serves once it is fit for work.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import structlog
from troupe.v1 import training_pb2

from troupe_orchestrator.rotation import NO_MEMBERS, Member, Rotation

logger = structlog.get_logger()

SCHEME: Final = "dns:///"
_LABEL: Final = "[A-Za-z0-9](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
_TARGET: Final = re.compile(rf"(?P<name>{_LABEL}(?:\.{_LABEL})*\.?):(?P<port>[0-9]{{1,5}})")
_LOOK_SECONDS: Final = 5.0
_NO_ADDRESS: Final = (socket.EAI_NONAME, socket.EAI_NODATA)

M = TypeVar("M", bound=Member)


@dataclass(frozen=True, slots=True)
class Host:
    """All addresses of a name, at one port."""

    name: str
    port: int

    def look_up(self) -> frozenset[str]:
        """A host:port for each address; none where the name has none. Blocks.

        Of two families only one counts: a process that listens to both would be two replicas.

        Raises:
            OSError: no name server says so or otherwise.
        """
        try:
            found = socket.getaddrinfo(self.name, self.port, type=socket.SOCK_STREAM)
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
    if matched is None or not 0 < int(matched["port"]) < 1 << 16:
        raise ValueError(f"{target!r} must be {SCHEME}NAME:PORT, with the number of a port")
    return Host(matched["name"], int(matched["port"]))


class Lookups(Generic[M]):
    """Keeps a fleet's members equal to the addresses of a name. Made and used on the event loop.

    Args:
        make: a member for a host:port, with a channel of its own.
    """

    def __init__(self, rotation: Rotation[M], host: Host, make: Callable[[str], M]) -> None:
        self.missing: training_pb2.Condition | None = None
        """What is to be told of the name while it has no address."""
        self._rotation = rotation
        self._host = host
        self._make = make
        self._members: dict[str, M] = {}
        self._away = False
        self._listeners: list[Callable[[training_pb2.Condition], object]] = []
        self._loop = asyncio.get_running_loop()
        self._closed = threading.Event()
        rotation.watched = True

    def start(self) -> None:
        """Look up from now on: in a thread of its own, which a name server that does not answer may hold up for long."""
        name = f"{self._rotation.service}-addresses"
        threading.Thread(target=self._look_again, name=name, daemon=True).start()

    def on_missing(self, listener: Callable[[training_pb2.Condition], object]) -> None:
        """Have `listener` told when the name has lost its last address."""
        self._listeners.append(listener)

    def take(self, now: frozenset[str] | Exception) -> None:
        """Have the fleet be so; after an error it stays as it was."""
        if self._closed.is_set():
            return
        if isinstance(now, Exception):
            if not self._away:
                logger.warning(
                    "a name cannot be looked up; members stay as last known", name=self._host.name, why=repr(now)
                )
            self._away = True
            return
        self._away = False
        for target in self._members.keys() - now:
            self._rotation.leave(self._members.pop(target), f"{self._host.name} does not have its address any more")
        for target in sorted(now - self._members.keys()):
            self._members[target] = self._make(target)
            self._rotation.join(self._members[target])
        self._tell_if_missing()

    def close(self) -> None:
        """Look up no more."""
        self._closed.set()

    def _tell_if_missing(self) -> None:
        if self._members:
            self.missing = None
        elif self.missing is None:
            self.missing = training_pb2.Condition(
                reason=NO_MEMBERS[self._rotation.service],
                message=f"{self._host.name} has no address: work waits for a replica, and counts no fault meanwhile",
                remedy=f"start a replica under that name, or mend TROUPE_{self._rotation.service.upper()}",
            )
            logger.warning("no addresses", name=self._host.name, service=self._rotation.service)
            for listener in self._listeners:
                listener(self.missing)

    def _look_again(self) -> None:
        while not self._closed.is_set():
            found: frozenset[str] | Exception
            try:
                found = self._host.look_up()
            except Exception as error:  # the boundary of a look-up: whatever it ends with, the next one follows
                found = error
            # The loop may have ended meanwhile.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self.take, found)
            self._closed.wait(_LOOK_SECONDS)
