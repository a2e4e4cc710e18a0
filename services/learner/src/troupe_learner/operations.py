"""Long work as operations: started by one call, watched by others, kept for a while after they are done."""

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Final

from troupe_contracts.errors import NotFound

from troupe_learner.ledger import AppliedStep, Ledger

_KEPT: Final = 256


@dataclass(frozen=True)
class Failure:
    """Why an operation failed; `code` names a gRPC status."""

    code: str
    message: str


@dataclass(frozen=True)
class Loaded:
    """State that was saved or loaded: where it lies (empty: the initial weights), what it is, and its size on disk."""

    uri: str
    ledger: Ledger
    byte_size: int


@dataclass(frozen=True)
class Event:
    """An operation's state at one moment. Exactly one of the last three is set when `done`."""

    number: int
    progress: float = 0.0
    done: bool = False
    failure: Failure | None = None
    step: AppliedStep | None = None
    checkpoint: Loaded | None = None


class Operation:
    """One piece of long work; for use on the event loop only. `subject` says what it does, `name` which it is."""

    def __init__(self, name: str, subject: str) -> None:
        self.name = name
        self.subject = subject
        self._events = [Event(1)]
        self._changed = asyncio.Event()

    @property
    def now(self) -> Event:
        return self._events[-1]

    def advance(self, progress: float) -> None:
        self._add(replace(self.now, progress=progress))

    def fail(self, code: str, message: str) -> None:
        self._add(replace(self.now, done=True, failure=Failure(code, message)))

    def finish(self, *, step: AppliedStep | None = None, checkpoint: Loaded | None = None) -> None:
        self._add(replace(self.now, progress=1.0, done=True, step=step, checkpoint=checkpoint))

    async def follow(self, after: int) -> AsyncIterator[Event]:
        """Events numbered above `after`, as they come, to the last."""
        while True:
            changed, news, done = self._changed, self._events[after:], self.now.done
            for event in news:
                yield event
            after += len(news)
            if done:
                return
            await changed.wait()

    def _add(self, event: Event) -> None:
        self._events.append(replace(event, number=len(self._events) + 1))
        self._changed.set()
        self._changed = asyncio.Event()


class Operations:
    """All operations of this process, the oldest forgotten first."""

    def __init__(self) -> None:
        self._by_name: OrderedDict[str, Operation] = OrderedDict()
        self._numbers = itertools.count(1)

    def begin(self, subject: str) -> Operation:
        operation = Operation(f"operations/{next(self._numbers)}-{subject}", subject)
        self._by_name[operation.name] = operation
        while len(self._by_name) > _KEPT:
            self._by_name.popitem(last=False)
        return operation

    def get(self, name: str) -> Operation:
        operation = self._by_name.get(name)
        if operation is None:
            raise NotFound(
                "operation", name, "it is older than this process, or long done: GetLearner says what is applied"
            )
        return operation
