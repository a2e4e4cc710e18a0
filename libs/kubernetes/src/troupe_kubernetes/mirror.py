"""A list that is kept current in a thread: list, watch, and list again whenever the watch ends.

A watch is a hint, the list is the truth. However a watch ends (its time is up, its version is gone, the network cut it, or
it fell silent), what follows is a whole list that replaces what was known: an event that was missed is missed for minutes at
most. While the API server is away the last list stays, and says since when it is old.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from troupe_kubernetes.api import Api, ApiError, ApiUnreachableError, Object, Watched

WATCH_SECONDS: Final = 240
SILENT_SECONDS: Final = 270.0
_FIRST_PAUSE_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 15.0
_SHORT_WATCH_SECONDS: Final = 1.0
"""A watch that ended sooner is not opened again at once: something cuts every one."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is known."""

    objects: tuple[Object, ...]
    away: str = ""
    """Why the API server cannot be asked just now; empty while it can."""
    away_since: float = 0.0
    """Unix seconds."""


class Mirror:
    """Keeps one list.

    Args:
        path: of the list.
        query: selectors.
        changed: told of each change, in the mirror's thread.
        watch_seconds: after which the server is asked to end a watch.
        silent_seconds: after which a watch that says nothing is taken for dead; more than `watch_seconds`.
    """

    def __init__(
        self,
        api: Api,
        path: str,
        query: Mapping[str, str],
        changed: Callable[[Snapshot], None],
        watch_seconds: int = WATCH_SECONDS,
        silent_seconds: float = SILENT_SECONDS,
    ) -> None:
        self._api = api
        self._path = path
        self._query = dict(query)
        self._changed = changed
        self._watch_seconds = watch_seconds
        self._silent_seconds = silent_seconds
        self._objects: dict[str, Object] = {}
        self._away, self._away_since = "", 0.0
        self._told: Snapshot | None = None
        self._stopped = threading.Event()
        self._watched: Watched | None = None
        # A process that ends does not wait for a watch that says nothing.
        self._thread = threading.Thread(target=self._keep, name=f"mirror {path}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Ask and tell no more. Waits until a call to the API server that is under way has ended, or a moment."""
        self._stopped.set()
        if self._watched is not None:
            self._watched.stop()
        self._thread.join(1.0)

    def _keep(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while not self._stopped.is_set():
            begun = time.monotonic()
            try:
                self._follow(self._list())
            except (ApiError, ApiUnreachableError) as error:
                if not self._away:
                    self._away_since = time.time()
                self._away = str(error)
                self._tell()
                # Not all at once, when the API server is back.
                self._stopped.wait(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            else:
                pause = _FIRST_PAUSE_SECONDS
                if time.monotonic() - begun < _SHORT_WATCH_SECONDS:
                    self._stopped.wait(_SHORT_WATCH_SECONDS)

    def _list(self) -> str:
        """Replace what is known; the version that it is of."""
        listed = self._api.get(self._path, self._query)
        self._objects = {_key(each): each for each in listed.get("items") or ()}
        self._away, self._away_since = "", 0.0
        self._tell()
        return str(listed["metadata"]["resourceVersion"])

    def _follow(self, version: str) -> None:
        """Take in what changes after a version, until the watch ends."""
        query = {**self._query, "resourceVersion": version, "timeoutSeconds": str(self._watch_seconds)}
        with self._api.watch(self._path, query, self._silent_seconds) as watched:
            self._watched = watched
            for event in watched.events():
                if self._stopped.is_set() or event["type"] == "ERROR":
                    break
                if event["type"] == "DELETED":
                    self._objects.pop(_key(event["object"]), None)
                elif event["type"] in ("ADDED", "MODIFIED"):
                    self._objects[_key(event["object"])] = event["object"]
                self._tell()
            self._watched = None

    def _tell(self) -> None:
        snapshot = Snapshot(tuple(self._objects.values()), self._away, self._away_since)
        if not self._stopped.is_set() and snapshot != self._told:
            self._told = snapshot
            self._changed(snapshot)


def _key(found: Object) -> str:
    return str(found["metadata"]["uid"])
