"""Which object is to be looked at when: each stands there once, at its earliest time."""

import heapq
import itertools


class Agenda:
    """Objects with times. Equal times come in the order in which they were put down."""

    def __init__(self) -> None:
        self._times: dict[str, float] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._numbers = itertools.count()

    def put(self, uid: str, time: float) -> None:
        """Have an object looked at, at this time or earlier if it stands there already."""
        if time < self._times.get(uid, float("inf")):
            self._times[uid] = time
            heapq.heappush(self._heap, (time, next(self._numbers), uid))

    def take(self, now: float) -> str | None:
        """The next object whose time has come; it stands there no more."""
        self._drop_moved()
        if not self._heap or self._heap[0][0] > now:
            return None
        uid = heapq.heappop(self._heap)[2]
        del self._times[uid]
        return uid

    def next_time(self) -> float | None:
        """Of the first object; None where there is none."""
        self._drop_moved()
        return self._heap[0][0] if self._heap else None

    def _drop_moved(self) -> None:
        """Entries of objects that stand somewhere earlier, or were taken."""
        while self._heap and self._times.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
