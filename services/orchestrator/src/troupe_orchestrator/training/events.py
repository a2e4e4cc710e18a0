"""A run's events: numbered, stored, and told to whoever watches.

Stored events are the truth; a watcher that reconnects asks for those after the last it saw. Progress within a step is only
told to who watches now.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from troupe.v1 import training_pb2

from troupe_orchestrator.event_feed import EventFeed
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.run_events import last_event_id, read_events, write_events
from troupe_orchestrator.training.listener import NOBODY, RunListener


class EventLog:
    """Events of one run, from whoever has something to tell: one event is stored at a time."""

    def __init__(self, database: Database, run_id: str, last_id: int, listener: RunListener = NOBODY) -> None:
        self._database = database
        self._run_id = run_id
        self._listener = listener
        self._appending = asyncio.Lock()
        self._prepared: list[training_pb2.RunEvent] = []
        """Numbered and not known to be stored."""
        self._feed = EventFeed(last_id, self._read, training_pb2.RunEvent.FromString)

    @classmethod
    async def open(cls, database: Database, run_id: str, listener: RunListener = NOBODY) -> "EventLog":
        return cls(database, run_id, await last_event_id(database, run_id), listener)

    @property
    def ended(self) -> bool:
        """The run has ended or stopped, and watchers know."""
        return self._feed.ended

    @contextlib.asynccontextmanager
    async def storing(self, step: int, *events: Message) -> AsyncIterator[list[tuple[int, bytes]]]:
        """Events, numbered and serialised, which the block stores with what else it stores. After it the watchers are told.

        Args:
            events: messages of RunEvent's kinds.
        """
        # Tasks of a step are dropped side by side: a number is taken when the one before it is stored.
        async with self._appending:
            if self._prepared:
                await self._reread()
            numbered = enumerate(events, start=self._feed.last_number + 1)
            self._prepared = [_envelope(number, step, event) for number, event in numbered]
            yield [(event.event_id, event.SerializeToString()) for event in self._prepared]
            stored, self._prepared = self._prepared, []
            self._feed.publish(*stored)
        for event in stored:
            self._listener.stored(self._run_id, event)

    async def reread(self) -> None:
        """Take the numbers from the store anew: after a write whose outcome is not known."""
        async with self._appending:
            await self._reread()

    async def append(self, step: int, event: Message) -> None:
        """Store one event and tell the watchers."""
        async with self.storing(step, event) as events, self._database.writing() as connection:
            await write_events(connection, self._run_id, events)

    async def progress(self, step: int, progress: training_pb2.StepProgress) -> None:
        """Tell who watches now how far the step is."""
        self._feed.notify(_envelope(self._feed.last_number, step, progress))

    async def end(self) -> None:
        """The run has ended or stopped: watchers get what is stored, then the end of their stream."""
        self._feed.end()

    def begin(self) -> None:
        """The run goes on."""
        self._feed.begin()

    async def watch(self, after: int) -> AsyncIterator[training_pb2.RunEvent]:
        """Events after a number: the stored ones, then live, until the run ends."""
        async with contextlib.aclosing(self._feed.watch(after)) as events:
            async for event in events:
                yield event

    async def _reread(self) -> None:
        await self._database.settled()
        last = await last_event_id(self._database, self._run_id)
        self._feed.reset(last)
        # There is one writer: where their numbers are taken, they are in the store.
        stored, self._prepared = [event for event in self._prepared if event.event_id <= last], []
        for event in stored:
            self._listener.stored(self._run_id, event)

    async def _read(self, after: int, limit: int) -> list[tuple[int, bytes]]:
        return await read_events(self._database, self._run_id, after, limit)


_KINDS = {
    training_pb2.StateChanged: "state_changed",
    training_pb2.StepProgress: "progress",
    training_pb2.StepCommitted: "step_committed",
    training_pb2.Condition: "condition",
    training_pb2.EvalFinished: "eval_finished",
}


def _envelope(number: int, step: int, event: Message) -> training_pb2.RunEvent:
    now = Timestamp()
    now.GetCurrentTime()
    envelope = training_pb2.RunEvent(event_id=number, time=now, step=step)
    getattr(envelope, _KINDS[type(event)]).CopyFrom(event)
    return envelope
