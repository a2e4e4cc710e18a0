"""What is to be told to who runs a training: each once, when it begins, and again only after it had ended for a while.

Pods are waited for a moment before they are told of: one that is being scheduled, or whose image is being pulled, is
Pending too. One that crashes over and over serves in between, and is one notice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from troupe_kubernetes.pods import Reason

PATIENCE_SECONDS: Final = 15.0
CALM_SECONDS: Final = 300.0
_AT_ONCE: Final = frozenset({"OOMKilled", "Evicted", "Failed", "CrashLoopBackOff"})


@dataclass(frozen=True, slots=True)
class Notice:
    """Something about the cluster that keeps a run from going as it should."""

    reason: str
    """CamelCase, as in the run's events."""
    message: str
    remedy: str


def of_pod(reason: Reason) -> Notice:
    """What is told of a pod that does not serve."""
    return Notice(reason.reason, reason.text, reason.remedy)


class Notices:
    """Which notices are in force, and which have been told.

    Args:
        tell: gets each one once.
        now: seconds, monotonic.
    """

    def __init__(self, tell: Callable[[Notice], None], now: Callable[[], float] = time.monotonic) -> None:
        self._tell = tell
        self._now = now
        self._since: dict[str, tuple[Notice, float]] = {}
        self._told: dict[str, tuple[Notice, float]] = {}
        """With when it was the case last."""

    def in_force(self) -> list[Notice]:
        """Those that were told and are still the case: for whoever begins to listen."""
        return [notice for key, (notice, _) in self._told.items() if key in self._since]

    def update(self, found: Mapping[str, Notice]) -> None:
        """What is the case now, by what it is about. To be called again after a while, where nothing changes."""
        now = self._now()
        for key in self._since.keys() - found.keys():
            del self._since[key]
        calm = [key for key, (_, last) in self._told.items() if key not in found and now - last > CALM_SECONDS]
        for key in calm:
            del self._told[key]
        for key, notice in found.items():
            known = self._since.get(key)
            if known is None or known[0].reason != notice.reason:
                self._since[key] = (notice, now)
            since = self._since[key][1]
            due = notice.reason in _AT_ONCE or now - since >= PATIENCE_SECONDS
            told = self._told.get(key)
            if told is not None and told[0].reason == notice.reason:
                self._told[key] = (told[0], now)
            elif due:
                self._told[key] = (notice, now)
                self._tell(notice)
