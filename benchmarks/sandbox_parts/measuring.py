"""How much is measured, how far it has come, and what a figure should be."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

CASES_PER_SOLUTION = 50


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    rounds: int
    # Workflow scripts at once, solutions queued at once, cases in a row.
    scripts: int
    solutions: int
    cases: int


def progress(text: str) -> None:
    """Says how far it has come, apart from the table."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Goal:
    """A figure, what it should be, and whether more is better."""

    name: str
    figure: float
    target: float
    more_is_better: bool
    unit: str
    # What to know where it is not met.
    why: str = ""

    def line(self) -> str:
        met = self.figure >= self.target if self.more_is_better else self.figure <= self.target
        sign = "≥" if self.more_is_better else "≤"
        verdict = "met" if met else f"NOT met{self.why and ': '}{self.why}"
        return f"{self.name:66} {self.figure:10.2f} {self.unit:8} goal {sign} {self.target:g}: {verdict}"


def timed(action: Callable[[], object]) -> float:
    """Seconds that an action takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started
