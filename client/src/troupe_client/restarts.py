"""How often, and how soon, a service that ended by itself is started again. Pure.

A service that was killed comes back nearly at once. One that ends again soon is given longer each time, and up for lost when
it has ended more often within WINDOW_SECONDS than the profile allows: then its log says more than another restart would.
"""

from collections.abc import Sequence
from typing import Final

WINDOW_SECONDS: Final = 600.0
_SOON_SECONDS: Final = 30.0
_FIRST_SECONDS: Final = 0.2
_LONGEST_SECONDS: Final = 10.0


def recent(endings: Sequence[float], now: float) -> list[float]:
    """The endings that still count; all are seconds on one clock."""
    return [ended for ended in endings if now - ended < WINDOW_SECONDS]


def delay(endings: Sequence[float], limit: int) -> float | None:
    """Seconds to wait after the last of these recent endings, oldest first; None when there were more than `limit`."""
    if len(endings) > limit:
        return None
    soon = sum(endings[-1] - ended < _SOON_SECONDS for ended in endings)
    return min(_FIRST_SECONDS * 2.0 ** (soon - 1), _LONGEST_SECONDS)
