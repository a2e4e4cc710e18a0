"""What grading ends in. A grader that dies or overruns is a third outcome, never silently "wrong"."""

from dataclasses import dataclass
from typing import Final

UNGRADABLE: Final = "ungradable"
"""How the reason of an answer begins that no grader could grade; also the flag of its execution."""


@dataclass(frozen=True, slots=True)
class Correct:
    """The answer is right."""


@dataclass(frozen=True, slots=True)
class Incorrect:
    """The answer is wrong, or is no answer; `reason` says which, for people."""

    reason: str
    ungradable: bool = False
    """No grader could grade it: the answer ended each one that tried, and is wrong for that."""


@dataclass(frozen=True, slots=True)
class GraderFault:
    """Nothing was found out: the grader died, overran its limits, or could not be reached."""

    reason: str


Grade = Correct | Incorrect | GraderFault
