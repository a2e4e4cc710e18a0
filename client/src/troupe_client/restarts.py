"""How often, and how soon, a service that ended by itself is started again. Pure.

A service that was killed comes back nearly at once. One that keeps ending is given a little longer each time, and up for
lost after LIMIT restarts within WINDOW_SECONDS: then its log says more than another restart would.
"""

from collections.abc import Sequence
from typing import Final

LIMIT: Final = 5
WINDOW_SECONDS: Final = 600.0
_FIRST_SECONDS: Final = 0.2


def recent(endings: Sequence[float], now: float) -> list[float]:
    """The endings that still count; all are seconds on one clock."""
    return [ended for ended in endings if now - ended < WINDOW_SECONDS]


def delay(endings: Sequence[float]) -> float | None:
    """Seconds to wait after the last of these recent endings; None when there were too many."""
    return None if len(endings) > LIMIT else _FIRST_SECONDS * 2 ** (len(endings) - 1)
