"""A task and what grades it. The reference never leaves the orchestrator and the grader."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

TaskType = Literal["math", "code"]


class Checker(StrEnum):
    """How the output of a program is compared with what is expected."""

    LINES = "lines"
    """Equal up to white space at line ends and blank lines at the end."""
    TOKENS = "tokens"
    """Equal as lists of white-space-separated tokens."""
    FLOAT_TOKENS = "float_tokens"
    """As tokens; two decimals may differ by 1e-6, absolute or relative."""
    EXACT = "exact"
    """Byte for byte."""


@dataclass(frozen=True, slots=True)
class MathReference:
    """The right value or values. Several values are all due, in any order.

    A list in the file stays a list here, also with one item.
    """

    answer: str | tuple[str, ...]
    multiple: bool = False
    """`answer` is one text that lists several values, separated by commas."""
    unit: str | None = None
    """Unit that the question asks in; an answer may name it."""
    tolerance: float | None = None
    """Largest absolute difference, for a decimal reference only. None: 1e-6 of the reference."""

    @property
    def values(self) -> tuple[str, ...]:
        """The answer as a tuple, whatever form it has in the file."""
        return (self.answer,) if isinstance(self.answer, str) else self.answer


@dataclass(frozen=True, slots=True)
class StdinTests:
    """The solution is a program; each case is its standard input and the expected standard output."""

    cases: tuple[tuple[str, str], ...]
    checker: Checker = Checker.TOKENS


@dataclass(frozen=True, slots=True)
class AssertionTests:
    """The solution is a module; each case is Python that raises if it is wrong."""

    setup: str
    """Run before the solution."""
    cases: tuple[str, ...]
    entry_point: str
    """Function that the cases call."""


Reference = MathReference | StdinTests | AssertionTests


@dataclass(frozen=True, slots=True)
class Task:
    """A question plus what grades it."""

    task_id: str
    family: str
    task_type: TaskType
    question: str
    reference: Reference
    grader: str = ""
    """Plug-in that grades it; empty: Troupe's own."""

    def __post_init__(self) -> None:
        if (self.task_type == "math") != isinstance(self.reference, MathReference):
            raise ValueError(f"a {self.task_type} task cannot have {type(self.reference).__name__} as its reference")
        if self.grader and self.task_type != "math":
            raise ValueError(f"a {self.task_type} task is graded by its tests, not by the grader {self.grader!r}")
