"""How far a phase is: a bar on a terminal; elsewhere a line when it begins, one now and then, and one at its end."""

import time
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_SECONDS: Final = 10.0
"""Least time between two lines of one phase where there is no terminal."""


class Phase:
    """One phase in progress. Use as a context manager."""

    def __init__(self, console: Console, what: str, total: int = 0, done: int = 0) -> None:
        self._console = console
        self._what = what
        self._done, self._total = done, total
        self._begun = self._said = time.monotonic()
        self._progress = Progress(
            TextColumn(f"{what:<26s}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._bar = self._progress.add_task(what, total=total or None, completed=done)

    def __enter__(self) -> Self:
        self._progress.start()
        self._say("begins")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()
        if error is None:
            self._say(f"took {time.monotonic() - self._begun:.1f} s")

    def advance_to(self, done: int, total: int) -> None:
        """So much is done."""
        self._progress.update(self._bar, completed=done, total=total)
        if (done, total) != (self._done, self._total) and time.monotonic() - self._said >= LINE_SECONDS:
            self._say(f"{done} of {total}")
        self._done, self._total = done, total

    def _say(self, text: str) -> None:
        if not self._console.is_terminal:
            self._said = time.monotonic()
            self._console.print(f"{self._what}: {text}", style="dim")
