"""Faults that are ours. They are retried, then the whole task is dropped from the step; none ever becomes a reward.

A service that is full, or that is loading weights, has not failed: it says when to ask again, and is asked again. That is no
attempt, and no fault until it has lasted for `PATIENCE_SECONDS`. After `NOTICE_SECONDS` it is told of all the same.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import grpc
from troupe_contracts.errors import code_of, describe, is_infrastructure, retry_delay

PATIENCE_SECONDS = 300.0
"""How long one piece of work asks a service again that has no room for it."""
NOTICE_SECONDS = 5.0
"""How long it asks again without anybody being told."""
_PAUSE_SECONDS = 0.2
"""Between two questions, where the service names no delay."""
_REMEDIES: Mapping[grpc.StatusCode, str] = {
    grpc.StatusCode.UNAVAILABLE: "see whether it runs (`troupe status`) and start it again",
    grpc.StatusCode.DEADLINE_EXCEEDED: "it hangs or is far too slow: see its log, restart it, or raise its deadline",
    grpc.StatusCode.INTERNAL: "a defect of that service: its log has the cause",
    grpc.StatusCode.UNKNOWN: "a defect of that service: its log has the cause",
    grpc.StatusCode.INVALID_ARGUMENT: "a request that we built and it refuses: report it with this text",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "it has no room: give it more, or lower what runs at once",
    grpc.StatusCode.FAILED_PRECONDITION: "it is not in the state that this needs: the text says which",
}
_OTHER_REMEDY = "see the service's log"
_PARTICULAR = re.compile(r"\b[0-9a-f]*\d[0-9a-f.]*")
"""Numbers and ids."""


class InfrastructureFaultError(Exception):
    """A dead sandbox, an unreachable engine, a full disk, our queue: not the policy's doing.

    Attributes:
        service: which part failed.
        text: what it said.
        remedy: what to do about it.
        retry_after: seconds that the part asks us to wait, 0 if it said nothing.
        retriable: false where the same request would be refused again.
        full: the part refused before it did anything, and has room later.
        error: the call that failed, where it was one.
        code: its status code.
    """

    def __init__(
        self,
        service: str,
        message: str,
        retry_after: float = 0.0,
        retriable: bool = True,
        full: bool = False,
        error: grpc.RpcError | None = None,
        remedy: str = "",
    ) -> None:
        self.service = service
        self.text = message
        self.retry_after = retry_after
        self.retriable = retriable
        self.full = full
        self.error = error
        self.code = None if error is None else code_of(error)
        self.remedy = remedy or (_OTHER_REMEDY if self.code is None else _REMEDIES.get(self.code, _OTHER_REMEDY))
        super().__init__(f"{service}: {message}")


def fault_of(service: str, error: grpc.RpcError) -> InfrastructureFaultError:
    """The fault behind a failed call.

    A request that we built and a service refuses is a fault of ours too: it must not be blamed on the policy. It is not
    tried again, since it would be refused again.
    """
    delay = retry_delay(error)
    return InfrastructureFaultError(
        service,
        describe(error),
        retry_after=delay or 0.0,
        retriable=is_infrastructure(error),
        # Without a delay it is gRPC's own code for a message that is too large.
        full=code_of(error) is grpc.StatusCode.RESOURCE_EXHAUSTED and delay is not None,
        error=error,
    )


Told = Callable[[InfrastructureFaultError], None]
"""Called with what a service said that has had no room for a while."""


class Patience:
    """Waits between questions to a service that has no room, up to a limit."""

    def __init__(self, told: Told, seconds: float | None = None) -> None:
        """Nothing has been waited for yet.

        Args:
            told: called once, where a wait for room takes longer than `NOTICE_SECONDS`.
            seconds: the limit; `PATIENCE_SECONDS` unless given.
        """
        self._told = told
        self._seconds = PATIENCE_SECONDS if seconds is None else seconds
        self._began: float | None = None
        self._noticed = False

    async def wait(self, fault: InfrastructureFaultError) -> None:
        """Sleep as long as the service asks.

        Raises:
            InfrastructureFaultError: it has had no room for longer than the limit.
        """
        now = time.monotonic()
        self._began = now if self._began is None else self._began
        if now - self._began > self._seconds:
            raise InfrastructureFaultError(
                fault.service,
                f"{fault.text}; so for {self._seconds:g} s",
                fault.retry_after,
                error=fault.error,
                remedy=fault.remedy,
            ) from fault
        pause = max(fault.retry_after, _PAUSE_SECONDS)
        if fault.full and not self._noticed and now + pause - self._began >= NOTICE_SECONDS:
            self._noticed = True
            self._told(fault)
        await asyncio.sleep(pause)


@dataclass(slots=True)
class FaultTally:
    """The faults of one step: how many by service, and one of each kind to tell of."""

    counts: Counter[str] = field(default_factory=Counter)
    untold: list[InfrastructureFaultError] = field(default_factory=list)
    """The first of each kind, until somebody has told of it and takes it out: thousands of one kind are one event."""
    _known: set[tuple[str, object]] = field(default_factory=set)

    def add(self, fault: InfrastructureFaultError) -> None:
        """Count a fault."""
        self.counts[fault.service] += 1
        kind = (fault.service, _PARTICULAR.sub("#", fault.text) if fault.code is None else fault.code)
        if kind not in self._known:
            self._known.add(kind)
            self.untold.append(fault)

    def metrics(self) -> dict[str, float]:
        """`faults/SERVICE` for those that had some, and `faults` for all together."""
        by_service = {f"faults/{service}": float(count) for service, count in sorted(self.counts.items())}
        return {"faults": float(self.counts.total()), **by_service}
