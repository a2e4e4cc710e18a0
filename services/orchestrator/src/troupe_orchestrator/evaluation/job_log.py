"""What happens in one job, as numbered events: stored, then told to its watchers.

Items that end while others are being stored are stored together after them: one file of trees, one transaction, one event.
So the more ends at once, the less each item costs.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from troupe.v1 import evaluation_pb2, training_pb2

from troupe_orchestrator.evaluation.messages import event_message
from troupe_orchestrator.event_feed import EventFeed
from troupe_orchestrator.store import evals as store
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.evals import EvalRecord, EvalState, ItemCounts, ItemRecord
from troupe_orchestrator.store.executions import TreeFile
from troupe_orchestrator.store.trees import execution_ids, write_trees
from troupe_orchestrator.training.retention import sweep
from troupe_orchestrator.tree import Tree

_SECONDS_PER_WATCHER = 0.0005
"""From one event to the next. Telling one watcher takes about 0.2 ms (benchmarks/watchers.py)."""


@dataclass(frozen=True, slots=True)
class FinishedItem:
    """An item that has ended, and its tree; none where it ended in faults of ours."""

    record: ItemRecord
    tree: Tree | None


class JobLog:
    """The state, items and events of one job. One writer: whoever runs it."""

    def __init__(
        self,
        database: Database,
        record: EvalRecord,
        folder: Path,
        counts: ItemCounts,
        last_event: int,
        changed: Callable[[str], None],
    ) -> None:
        self._changed = changed
        self._database = database
        self._record = record
        self._folder = folder
        self._counts = counts
        self._seconds = record.seconds
        self._running_since = time.monotonic()
        self._told_at = 0.0
        self._finished: list[FinishedItem] = []
        self._writing = asyncio.Lock()
        self.feed = open_feed(database, record.job_id, last_event)

    @classmethod
    async def open(
        cls, database: Database, record: EvalRecord, folder: Path, changed: Callable[[str], None]
    ) -> "JobLog":
        """The log of a job that is in the store. What another orchestrator left of it and never listed is removed.

        Args:
            changed: called with the job's id after each event, when that is in the store.
        """
        await sweep(database, record.job_id, folder)
        counts = await store.count_items(database, record.job_id)
        return cls(database, record, folder, counts, await store.last_event_id(database, record.job_id), changed)

    @property
    def record(self) -> EvalRecord:
        """The job as it is stored."""
        return self._record

    async def began(self, versions: dict[str, str]) -> None:
        """Items are run from now on, with these versions."""
        await store.set_versions(self._database, self._record.job_id, versions)
        self._record = replace(self._record, versions=versions)
        self._running_since = time.monotonic()

    async def add(self, item: FinishedItem) -> None:
        """Store one item; returns when it and its event are in the store."""
        self._finished.append(item)
        async with self._writing:
            # Whoever stored before may have stored this one too.
            if self._finished:
                await asyncio.sleep(self._pause())
                finished, self._finished = self._finished, []
                await _to_its_end(self._store(finished))

    async def tell(self, condition: training_pb2.Condition) -> None:
        """Store what hinders the job and tell of it; nothing once it has ended."""
        async with self._writing:
            if self._record.state is EvalState.RUNNING:
                await _to_its_end(self._store_condition(condition))

    async def end(self, state: EvalState, reason: str, summary: evaluation_pb2.EvalSummary | None = None) -> None:
        """The job has ended; its watchers end after this event."""
        async with self._writing:
            await _to_its_end(self._store_end(state, reason, summary))

    async def reopen(self, keep_items: bool) -> None:
        """Let the job go on: without the items that faulted, or from its start."""
        async with self._writing:
            await _to_its_end(self._store_reopened(keep_items))

    @property
    def seconds(self) -> float:
        """For which the job has run, over all restarts."""
        return self._seconds + time.monotonic() - self._running_since

    def _pause(self) -> float:
        """Seconds until the next event is due: with many watchers items are told together, or telling would be all that
        the orchestrator does.
        """
        return max(0.0, self._told_at + _SECONDS_PER_WATCHER * self.feed.watchers - time.monotonic())

    async def _store(self, finished: list[FinishedItem]) -> None:
        counts = ItemCounts(
            self._counts.done + len(finished), self._counts.faulted + sum(item.record.faulted for item in finished)
        )
        items = [evaluation_pb2.EvalItem.FromString(item.record.payload) for item in finished]
        event = event_message(self.feed.last_number + 1, self._record, counts, items)
        await store.add_items(
            self._database,
            self._record.job_id,
            [item.record for item in finished],
            await self._write_trees(event.event_id, [item.tree for item in finished if item.tree is not None]),
            (event.event_id, _serialised(event)),
            self.seconds,
        )
        self._counts = counts
        self._told_at = time.monotonic()
        self._publish(event)

    async def _write_trees(self, event_id: int, trees: list[Tree]) -> TreeFile | None:
        """Named by the event, so that what was left without one is replaced by the next, and by who writes, so that an
        orchestrator which lost the store replaces nothing."""
        if not trees:
            return None
        file = self._folder / "trees" / f"{event_id:08d}-{self._database.fence.token}.parquet"
        digest = await asyncio.to_thread(write_trees, file, trees)
        return TreeFile(str(file), execution_ids(trees), digest)

    async def _store_condition(self, condition: training_pb2.Condition) -> None:
        event = event_message(self.feed.last_number + 1, self._record, self._counts)
        event.condition.CopyFrom(condition)
        await store.add_event(self._database, self._record.job_id, (event.event_id, _serialised(event)))
        self._publish(event)

    async def _store_end(self, state: EvalState, reason: str, summary: evaluation_pb2.EvalSummary | None) -> None:
        stored = None if summary is None else _serialised(summary)
        record = replace(
            self._record, state=state, reason=reason, ended_at=time.time(), summary=stored or self._record.summary
        )
        event = event_message(self.feed.last_number + 1, record, self._counts, summary=summary)
        await store.end_job(
            self._database,
            record.job_id,
            state,
            reason,
            (event.event_id, _serialised(event)),
            stored,
        )
        self._record = record
        self._publish(event)
        self.feed.end()

    async def _store_reopened(self, keep_items: bool) -> None:
        counts = ItemCounts(self._counts.done - self._counts.faulted if keep_items else 0, 0)
        record = replace(self._record, state=EvalState.RUNNING, reason="", ended_at=None, seconds=self._seconds)
        if not keep_items:
            record = replace(record, versions={}, summary=None, seconds=0.0)
        event = event_message(self.feed.last_number + 1, record, counts)
        await store.reopen_job(self._database, record.job_id, (event.event_id, _serialised(event)), keep_items)
        self._record, self._counts, self._seconds = record, counts, record.seconds
        self._publish(event)

    def _publish(self, event: evaluation_pb2.EvalEvent) -> None:
        self.feed.publish(event)
        self._changed(self._record.job_id)


def open_feed(database: Database, job_id: str, last_event: int) -> EventFeed[evaluation_pb2.EvalEvent]:
    """The events of a job after what is stored."""

    async def read(after: int, limit: int) -> list[tuple[int, bytes]]:
        return await store.read_events(database, job_id, after, limit)

    return EventFeed(last_event, read, evaluation_pb2.EvalEvent.FromString)


def first_event(record: EvalRecord) -> tuple[int, bytes]:
    """The event that a job begins with."""
    return 1, _serialised(event_message(1, record, ItemCounts(0, 0)))


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Like awaiting it, but a caller that is cancelled waits: what is stored has to be told too."""
    task = asyncio.create_task(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    await task
    if cancelled:
        raise asyncio.CancelledError


def _serialised(message: evaluation_pb2.EvalEvent | evaluation_pb2.EvalSummary) -> bytes:
    return message.SerializeToString(deterministic=True)
