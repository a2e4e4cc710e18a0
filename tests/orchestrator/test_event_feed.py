"""The feed of numbered events: what any number of watchers are told, whatever they missed and however slow they are."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from troupe_orchestrator import event_feed
from troupe_orchestrator.event_feed import EventFeed


class Stored:
    """A store of events, which are their numbers; counts how often it is read."""

    def __init__(self, count: int = 0) -> None:
        self.numbers = list(range(1, count + 1))
        self.reads = 0
        self.feed = EventFeed(count, self._read, lambda payload: int(payload))

    async def _read(self, after: int, limit: int) -> Sequence[tuple[int, bytes]]:
        self.reads += 1
        await asyncio.sleep(0)
        return [(number, str(number).encode()) for number in self.numbers[after : after + limit]]

    def add(self, count: int = 1) -> None:
        new = range(len(self.numbers) + 1, len(self.numbers) + count + 1)
        self.numbers += new
        self.feed.publish(*new)


async def told(feed: EventFeed[int], after: int = 0, pause: int = 0) -> list[int]:
    """All events of a watcher that lets the loop turn so often after each."""
    seen = []
    async for event in feed.watch(after):
        seen.append(event)
        for _ in range(pause):
            await asyncio.sleep(0)
    return seen


@given(
    stored=st.integers(0, 20),
    added=st.lists(st.integers(1, 7), max_size=8),
    watchers=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 4)), min_size=1, max_size=6),
    window=st.integers(1, 12),
    page=st.integers(1, 5),
)
def test_every_watcher_is_told_each_event_after_its_number_once_and_in_order(
    stored: int, added: list[int], watchers: list[tuple[int, int]], window: int, page: int
) -> None:
    async def run() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(event_feed, "WINDOW", window)
            patch.setattr(event_feed, "PAGE", page)
            store = Stored(stored)
            watching = [asyncio.create_task(told(store.feed, after, pause)) for after, pause in watchers]
            for count in added:
                await asyncio.sleep(0)
                store.add(count)
            await asyncio.sleep(0)
            store.feed.end()
            total = stored + sum(added)
            for (after, _), task in zip(watchers, watching, strict=True):
                assert await task == list(range(min(after, stored) + 1, total + 1))

    asyncio.run(run())


async def test_an_event_is_told_to_a_thousand_watchers_without_reading_the_store() -> None:
    store = Stored()
    watching = [asyncio.create_task(told(store.feed)) for _ in range(1000)]
    await asyncio.sleep(0)
    assert store.feed.watchers == 1000
    for _ in range(3):
        store.add()
        await asyncio.sleep(0)
    store.feed.end()
    assert await asyncio.gather(*watching) == [[1, 2, 3]] * 1000
    assert (store.reads, store.feed.watchers) == (0, 0)


async def test_only_the_newest_notice_is_told_and_none_that_an_event_followed() -> None:
    feed: EventFeed[str] = EventFeed(0, Stored()._read, str)
    watching = asyncio.create_task(_collected(feed))
    await asyncio.sleep(0)
    feed.notify("first")
    feed.notify("second")
    await asyncio.sleep(0)
    feed.notify("third")
    feed.publish("event")
    feed.end()
    assert await watching == ["second", "event"]


async def _collected(feed: EventFeed[str]) -> list[str]:
    return [event async for event in feed.watch(0)]


async def test_after_a_write_whose_outcome_was_not_known_the_store_is_what_counts() -> None:
    store = Stored()
    store.add(2)
    store.numbers.append(3)
    store.feed.reset(3)
    store.add()
    store.feed.end()
    assert [await told(store.feed, after) for after in range(4)] == [[1, 2, 3, 4], [2, 3, 4], [3, 4], [4]]
