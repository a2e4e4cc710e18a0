"""What a task is, and which side of the train/held-out split it lies on. Pure.

Invariants: a task's id and its side are functions of its canonical operands alone, so that a task never
stands on both sides, whatever its wording; `question` never holds a reference answer or a hidden test.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "held_out")
TaskType = Literal["math", "code"]

# Of 100 groups of operands, so many are held out.
HELD_OUT_PERCENT = 20


@dataclass(frozen=True)
class TestCase:
    """One run of a program: what it reads on stdin, and what it must print."""

    stdin: str
    expected: str


@dataclass(frozen=True)
class Task:
    """A question and what grades it: a reference answer (math) or hidden tests (code), never both."""

    id: str
    family: str
    question: str
    task_type: TaskType
    answer: str = ""
    tests: tuple[TestCase, ...] = ()

    def to_json(self) -> str:
        """One line of Troupe's problem file format."""
        line: dict[str, Any] = {
            "id": self.id,
            "family": self.family,
            "task_type": self.task_type,
            "question": self.question,
        }
        if self.task_type == "math":
            line["answer"] = self.answer
        else:
            line["tests"] = {"stdin": [[test.stdin, test.expected] for test in self.tests]}
        return json.dumps(line)


def digest(*parts: object) -> int:
    """A number of 64 bits that depends on the parts alone: the same on every machine and in every process."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big")


def task_id(family: str, *operands: object) -> str:
    """The id of the task with these canonical operands."""
    return f"{family}-{digest('id', family, *operands):016x}"


def side(*operands: object) -> Split:
    """The side of the split that a group of canonical operands lies on."""
    return "held_out" if digest("split", *operands) % 100 < HELD_OUT_PERCENT else "train"
