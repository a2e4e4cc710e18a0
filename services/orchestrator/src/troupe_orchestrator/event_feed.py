"""Tells numbered, stored events to any number of watchers.

The writer decodes nothing twice and waits for nobody: an event is kept once, in a window of the newest ones that all
watchers read, and each watcher has no more than a number of its own. One that falls behind the window reads the store, in
pages, until it has caught up. So the cost of an event does not grow with queries, memory does not grow with slow watchers,
and no event is lost or told twice.
"""

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Event = TypeVar("Event")

WINDOW = 1024
PAGE = 256

ReadEvents = Callable[[int, int], Awaitable[Sequence[tuple[int, bytes]]]]
"""Stored events after a number, in order, at most so many."""


class EventFeed(Generic[Event]):
    """The events of one thing. Numbers grow by one; one writer."""

    def __init__(self, last_number: int, read: ReadEvents, decode: Callable[[bytes], Event]) -> None:
        """A feed that goes on after what is stored.

        Args:
            last_number: of the newest stored event, 0 without one.
        """
        self._last = last_number
        self._read = read
        self._decode = decode
        self._window: deque[Event] = deque(maxlen=WINDOW)
        self._notice: Event | None = None
        self._ended = False
        self._changed = asyncio.Event()
        self.watchers = 0
        """How many watch now."""

    @property
    def last_number(self) -> int:
        """Number of the newest event."""
        return self._last

    @property
    def ended(self) -> bool:
        """No event will follow."""
        return self._ended

    def publish(self, *events: Event) -> None:
        """The next events, which are in the store now."""
        self._window.extend(events)
        self._last += len(events)
        self._notice = None
        self._wake()

    def reset(self, last_number: int) -> None:
        """Others were stored than were published: what is told from here on is read from the store."""
        self._window.clear()
        self._last = last_number
        self._wake()

    def notify(self, notice: Event) -> None:
        """Tell who watches now of something that is not stored; only the newest notice is told."""
        self._notice = notice
        self._wake()

    def end(self) -> None:
        """No event will follow: watchers get what there is, then the end."""
        self._ended = True
        self._wake()

    def begin(self) -> None:
        """Events follow again."""
        self._ended = False

    async def watch(self, after: int) -> AsyncGenerator[Event, None]:
        """Events after a number: the stored ones, then each as it comes, until the end."""
        self.watchers += 1
        try:
            # A number that no event has yet is as good as the last one, and fits the store's integers.
            async with contextlib.aclosing(self._watch(min(after, self._last))) as events:
                async for event in events:
                    yield event
        finally:
            self.watchers -= 1

    async def _watch(self, after: int) -> AsyncGenerator[Event, None]:
        told: Event | None = None
        while True:
            # Taken before anything is awaited: what comes meanwhile sets this very one.
            changed, notice, ended = self._changed, self._notice, self._ended
            while after < self._last:
                for event in await self._next(after):
                    after += 1
                    yield event
            if notice is not None and notice is not told and notice is self._notice:
                told = notice
                yield notice
            if ended:
                return
            await changed.wait()

    async def _next(self, after: int) -> list[Event]:
        """Some events after a number, at least one."""
        missing = self._last - after
        if missing <= len(self._window):
            return list(itertools.islice(self._window, len(self._window) - missing, None))
        stored = await self._read(after, PAGE)
        if not stored or stored[0][0] != after + 1:
            raise LookupError(f"event {after + 1} of {self._last} is not in the store")
        return [self._decode(payload) for _, payload in stored]

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
