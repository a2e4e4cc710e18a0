"""What the tests saw, for the table of the documentation."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One fault that a run survived."""

    fault: str
    state: str
    """The step's, as it was injected."""
    seconds: float
    """Until the next step was committed."""

    def __str__(self) -> str:
        return f"| {self.fault} | {self.state} | {self.seconds:.1f} |"


ROWS: list[Row] = []
