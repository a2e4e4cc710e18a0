"""Whether a server's services can be used, as `grpc.health.v1` tells it.

A service holds a `Health`, gives it to `server.serve`, and sets itself out of rotation and back. Before the
server starts, and once it drains, nothing is serving whatever the service says.
"""

from collections.abc import Sequence
from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """The state of each service of one server; for use on the event loop only."""

    def __init__(self, serving: bool = True) -> None:
        self._servicer = health.aio.HealthServicer()
        self._services: tuple[str, ...] = ()
        self._serving = serving
        self._open = False

    @property
    def serving(self) -> bool:
        """What the service last said of itself."""
        return self._serving

    def is_published(self) -> bool:
        """What callers are told now. Safe to call from any thread."""
        return self._serving and self._open

    async def set_serving(self, serving: bool) -> None:
        """Takes all services of this server out of rotation, or back into it."""
        self._serving = serving
        await self._publish()

    def attach(self, server: grpc.aio.Server, services: Sequence[str]) -> None:
        """Serves health on `server` for `services` and, as the empty name, for the whole of it."""
        self._services = ("", *services)
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def open(self) -> None:
        """The server has started: publish what the service says of itself."""
        self._open = True
        await self._publish()

    async def close(self) -> None:
        """The server drains: nothing is serving from here on."""
        self._open = False
        await self._publish()

    async def _publish(self) -> None:
        status = _SERVING if self.is_published() else _NOT_SERVING
        for service in self._services:
            await self._servicer.set(service, status)
