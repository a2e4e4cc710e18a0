"""Which members of a service get work: those in rotation, each with seats that say how much it takes at once.

A member that fails is taken out and asked, again and again, until it can be put back; meanwhile it gets nothing. One that
was taken out for another reason stays out until whoever did so puts it back. While none is left work waits, up to a stated
time; after it what waits fails by name, and what comes fails at once, until one is back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import grpc
import structlog
from troupe_contracts.errors import describe

logger = structlog.get_logger()

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 10.0


class NoReplicasError(RuntimeError):
    """A service has no replica that serves."""


class NotReadyError(RuntimeError):
    """A member answers and may not be used yet; says why and what would change that."""


class Seats:
    """How much of one kind a member does at once."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.taken = 0

    @property
    def free(self) -> int:
        return max(0, self.total - self.taken)


class Member(Protocol):
    """One process of a service."""

    @property
    def target(self) -> str: ...


M = TypeVar("M", bound=Member)


class Rotation(Generic[M]):
    """The members of one service. Subclasses say how one is brought back.

    Args:
        service: name for errors and events.
        outage_seconds: how long work waits while none serves.
    """

    def __init__(self, service: str, members: Sequence[M], outage_seconds: float) -> None:
        self.service = service
        self.outage = ""
        """Why work fails at once; empty while it waits or is done."""
        self._members = tuple(members)
        self._outage_seconds = outage_seconds
        self._out: dict[str, str] = {}
        self._returning: dict[str, asyncio.Task[None]] = {}
        self._down_since: float | None = None
        self._listeners: list[Callable[[], None]] = []
        self._changed = asyncio.Event()

    async def restore(self, member: M) -> None:
        """Make a member fit for work, or raise NotReadyError or a gRPC error."""
        raise NotImplementedError

    def replicas(self) -> tuple[M, ...]:
        """All of them, serving or not."""
        return self._members

    def serving(self) -> list[M]:
        """Those in rotation."""
        return [member for member in self._members if member.target not in self._out]

    def in_rotation(self, member: M) -> bool:
        return member.target not in self._out

    def on_change(self, listener: Callable[[], None]) -> None:
        """Have `listener` called whenever a member goes, comes back, or the outage is declared."""
        self._listeners.append(listener)

    def take_out(self, member: M, why: str = "its weights are not the current ones") -> None:
        """Give a member no more work, until it is put back."""
        if member.target in self._out:
            return
        logger.warning("out of rotation", service=self.service, replica=member.target, why=why)
        self._out[member.target] = why
        if not self.serving() and self._down_since is None:
            self._down_since = time.monotonic()
            asyncio.get_running_loop().call_later(self._outage_seconds + 0.01, self._declare_outage)
        self._tell()

    def suspect(self, member: M, why: str) -> None:
        """A member failed: take it out, and ask for it until it can be put back."""
        if member.target in self._out:
            return
        self.take_out(member, why)
        self._returning[member.target] = asyncio.create_task(
            self._bring_back(member), name=f"{self.service}-{member.target}-returns"
        )

    def put_back(self, member: M) -> None:
        """The member is fit for work."""
        if self._out.pop(member.target, None) is not None:
            logger.info("back in rotation", service=self.service, replica=member.target)
        self._down_since, self.outage = None, ""
        self._tell()

    def nobody(self) -> NoReplicasError:
        """The error where none serves, with what each one said last."""
        reasons = "; ".join(f"{target}: {why}" for target, why in self._out.items())
        return NoReplicasError(f"no {self.service} serves ({reasons})")

    async def somebody(self) -> None:
        """Wait until one serves.

        Raises:
            NoReplicasError: none has for as long as work waits.
        """
        while not self.serving():
            if self.outage:
                raise NoReplicasError(self.outage)
            await self._changed.wait()

    async def close(self) -> None:
        """Ask for nobody any more."""
        tasks = list(self._returning.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _bring_back(self, member: M) -> None:
        pause = _FIRST_PAUSE_SECONDS
        try:
            while member.target in self._out:
                try:
                    await self.restore(member)
                except (grpc.RpcError, NotReadyError) as error:
                    why = describe(error) if isinstance(error, grpc.RpcError) else str(error)
                    if member.target in self._out:
                        self._out[member.target] = why
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                else:
                    self.put_back(member)
        finally:
            if self._returning.get(member.target) is asyncio.current_task():
                del self._returning[member.target]

    def _declare_outage(self) -> None:
        if self._down_since is None or time.monotonic() - self._down_since < self._outage_seconds:
            return
        self.outage = f"{self.nobody()}, for {self._outage_seconds:g} s and more"
        self._tell()

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        for listener in self._listeners:
            listener()
