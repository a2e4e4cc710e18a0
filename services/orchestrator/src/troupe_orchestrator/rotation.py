"""Which members of a service get work: those in rotation, each with seats that say how much it takes at once.

A member that fails is taken out and asked, again and again, until it can be put back; meanwhile it gets nothing. One that
was taken out for another reason stays out until whoever did so puts it back. While none is left work waits, up to a stated
time; after it what waits fails by name, and what comes fails at once, until one is back.

Members may come and go. One that comes is out until it has been made fit for work; one that has gone is forgotten, with its
channel once nothing uses that. A service that has no members at all is not down: somebody has taken them away, or they
have not come yet, and work waits for them without limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Final, Generic, Protocol, TypeVar

import grpc
import structlog
from troupe_contracts.errors import describe

logger = structlog.get_logger()

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 10.0
_TELL_SECONDS = 30.0
_NOT_READY = "its pod is not ready"
NO_MEMBERS: Final = {"executor": "NoExecutors", "designer": "NoDesigners", "sandbox": "NoSandboxes"}
"""What runs are told where a service has no member at all: the condition's reason."""


class NoReplicasError(RuntimeError):
    """A service has no replica that serves."""


class NoMembersError(NoReplicasError):
    """A service has no replica at all: none has failed."""


class NotReadyError(RuntimeError):
    """A member answers and may not be used yet; says why and what would change that."""


class WeightsGoneError(NotReadyError):
    """It cannot be brought to the weights that are served: where they came from has others now."""


class NobodyCanServeError(NoReplicasError):
    """No replica serves, and none can be brought to the weights that are served."""


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
        self.watched = False
        """Somebody watches who the members are, and has them join and leave."""
        self._members = {member.target: member for member in members}
        self._outage_seconds = outage_seconds
        self._out: dict[str, str] = {}
        self._unready: set[str] = set()
        """Members that are said not to be ready by who watches them: they are made fit for work, and get none."""
        self._returning: dict[str, asyncio.Task[None]] = {}
        self._hurried = asyncio.Event()
        self._down_since: float | None = None
        self._listeners: list[Callable[[], None]] = []
        self._changed = asyncio.Event()

    async def restore(self, member: M) -> None:
        """Make a member fit for work, or raise NotReadyError or a gRPC error."""
        raise NotImplementedError

    def replicas(self) -> tuple[M, ...]:
        """All of them, serving or not."""
        return tuple(self._members.values())

    def ready(self) -> tuple[M, ...]:
        """Those that nobody says are not ready, in rotation or not."""
        return tuple(member for member in self._members.values() if member.target not in self._unready)

    def serving(self) -> list[M]:
        """Those in rotation."""
        return [member for member in self._members.values() if member.target not in self._out]

    def in_rotation(self, member: M) -> bool:
        return self._is_member(member) and member.target not in self._out

    def on_change(self, listener: Callable[[], None]) -> None:
        """Have `listener` called whenever a member goes, comes back, or the outage is declared."""
        self._listeners.append(listener)

    def join(self, member: M, ready: bool = True) -> None:
        """A member has come: it gets work once it is fit for it, and ready."""
        self._members[member.target] = member
        self._out[member.target] = "has just come"
        if not ready:
            self._unready.add(member.target)
        logger.info("joined", service=self.service, replica=member.target)
        self._note_outage()
        self._bring_back_later(member)
        self._tell()

    def leave(self, member: M, why: str) -> None:
        """A member has gone, or goes: it gets nothing new. What it is doing for us it may end."""
        if not self._is_member(member):
            return
        logger.info("left", service=self.service, replica=member.target, why=why)
        target = member.target
        del self._members[target]
        self._out.pop(target, None)
        self._unready.discard(target)
        if target in self._returning:
            self._returning.pop(target).cancel()
        self._note_outage()
        self._tell()

    def set_ready(self, member: M, ready: bool) -> None:
        """Whether a member is ready, as whoever watches it says."""
        if not self._is_member(member):
            return
        if not ready:
            self._unready.add(member.target)
            self.suspect(member, _NOT_READY)
        elif member.target in self._unready:
            self._unready.discard(member.target)
            self._hurried.set()
            self._hurried = asyncio.Event()

    def take_out(self, member: M, why: str = "its weights are not the current ones") -> None:
        """Give a member no more work, until it is put back."""
        if not self.in_rotation(member):
            return
        logger.warning("out of rotation", service=self.service, replica=member.target, why=why)
        self._out[member.target] = why
        self._note_outage()
        self._tell()

    def suspect(self, member: M, why: str) -> None:
        """A member failed: take it out, and ask for it until it can be put back."""
        if self.in_rotation(member):
            self.expect(member, why)

    def expect(self, member: M, why: str) -> None:
        """A member is not fit for work now: ask for it until it can be put back, also where it was taken out before."""
        if not self._is_member(member):
            return
        self.take_out(member, why)
        self._out[member.target] = why
        self._bring_back_later(member)

    def put_back(self, member: M) -> None:
        """The member is fit for work. One that is not ready gets it when it is."""
        if not self._is_member(member):
            return
        if member.target in self._unready:
            self._out[member.target] = _NOT_READY
            self._bring_back_later(member)
            return
        if self._out.pop(member.target, None) is not None:
            logger.info("in rotation", service=self.service, replica=member.target)
        self._note_outage()
        self._tell()

    def nobody(self) -> NoReplicasError:
        """The error where none serves, with what each one said last."""
        if not self._members:
            return NoMembersError(f"there is no {self.service}: it has no replica, ready or not")
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

    async def first(self) -> None:
        """Wait until one is in rotation, however long: services that start together come in any order."""
        while not self.serving():
            changed = self._changed
            logger.info("waiting for the first", service=self.service, why=str(self.nobody()))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), _TELL_SECONDS)

    async def halt(self) -> list[M]:
        """Ask for nobody for now; the members that were being brought back, for whoever halts this to put back or expect."""
        halted = [member for member in self._members.values() if member.target in self._returning]
        await self.close()
        return halted

    async def close(self) -> None:
        """Ask for nobody any more."""
        tasks = list(self._returning.values())
        self._returning.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _bring_back(self, member: M) -> None:
        pause = _FIRST_PAUSE_SECONDS
        try:
            while self._is_member(member) and member.target in self._out:
                try:
                    await self.restore(member)
                    if member.target in self._unready:
                        raise NotReadyError(_NOT_READY)
                except (grpc.RpcError, NotReadyError) as error:
                    why = describe(error) if isinstance(error, grpc.RpcError) else str(error)
                    if member.target in self._out:
                        self._out[member.target] = why
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._hurried.wait(), pause)
                    pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                else:
                    self.put_back(member)
        finally:
            if self._returning.get(member.target) is asyncio.current_task():
                del self._returning[member.target]

    def _bring_back_later(self, member: M) -> None:
        if member.target not in self._returning:
            self._returning[member.target] = asyncio.create_task(
                self._bring_back(member), name=f"{self.service}-{member.target}-returns"
            )

    def _is_member(self, member: M) -> bool:
        # An address that was another's is no longer that one's.
        return self._members.get(member.target) is member

    def _note_outage(self) -> None:
        """Begin to count where members are there and none serves; end it where one does, or none is there."""
        if self.serving() or not self._members:
            self._down_since, self.outage = None, ""
        elif self._down_since is None:
            self._down_since = time.monotonic()
            asyncio.get_running_loop().call_later(self._outage_seconds + 0.01, self._declare_outage)

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
