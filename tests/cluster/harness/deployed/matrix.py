"""What the tests saw, for the table of the documentation."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One fault that a run survived."""

    fault: str
    state: str
    """Of the step that it fell into, at that moment."""
    seconds: float
    """Until a step was committed that began after it."""

    def __str__(self) -> str:
        return f"| {self.fault} | {self.state} | {self.seconds:.1f} |"


ROWS: list[Row] = []
