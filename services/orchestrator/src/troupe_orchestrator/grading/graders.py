"""Graders of plug-ins (group `troupe.graders`), for values that the strict grader should not judge.

A math task that names one is graded by it alone, in a grading worker with its limits. Programs are always graded by their
hidden tests.
"""

from typing import Final, Protocol

from troupe_contracts.plugins import Registry


class PluginGrader(Protocol):
    """A function that compares one answer with the reference. It runs in a process without files that may be killed."""

    def __call__(self, question: str, reference: tuple[str, ...], answer: str) -> bool:
        """Whether the answer is right.

        Args:
            reference: the values that are due, as they are written in the file.
            answer: the final answer, without the format that it was delivered in.
        """


GRADERS: Final[Registry[PluginGrader]] = Registry("grader", PluginGrader, {})
