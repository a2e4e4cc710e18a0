"""How far a command is. Each piece of work tells: the front takes ranks that tell of nothing for long as hanging."""

from collections.abc import Callable

Progress = Callable[[float], None]
"""Takes the part of a command that is done, in [0, 1]."""


class Counted:
    """Progress in pieces of work of about one size."""

    def __init__(self, progress: Progress, pieces: int) -> None:
        self._progress = progress
        self._pieces = pieces
        self._done = 0

    def piece(self) -> None:
        """One more is done."""
        self._done += 1
        self._progress(self._done / self._pieces)
