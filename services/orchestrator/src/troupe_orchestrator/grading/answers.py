r"""Finds the final answer in a text. Pure.

A value is due in `\boxed{}`, a program in `<solution>`; of several the last one counts, so that 5, 7, 5 gives 5. Text that
has neither may still *be* an answer (a script that returns `42`, a tool that prints it): that is a `bare` answer, which can
be graded and is never paid for its format.
"""

import re
from dataclasses import dataclass
from typing import Literal

from troupe_orchestrator.datasets.task import TaskType

Form = Literal["boxed", "solution", "delivery", "bare"]

MAX_BARE_CHARACTERS = 200
"""Longest line that is taken for a bare value."""

# In one pass, so that a text full of boxes that never close costs no more than another. An escaped brace closes nothing.
_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_DELIVERY = re.compile(r"<delivery>((?:(?!<delivery>).)*?)</delivery>", re.DOTALL)
_SOLUTION = re.compile(r"<solution>((?:(?!<solution>).)*?)</solution>", re.DOTALL)
_FENCE = re.compile(r"```[^\n`]*\n(.*?)```", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Answer:
    """A final answer, and how it was given."""

    text: str
    form: Form

    @property
    def formatted(self) -> bool:
        """Given in the format that is due."""
        return self.form in ("boxed", "solution")


def boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{}` whose braces close; None if there is none, or nothing in it."""
    last: tuple[int, int] | None = None
    open_braces: list[int | None] = []
    for token in _BRACES.finditer(text):
        if token.group() == "}":
            start = open_braces.pop() if open_braces else None
            if start is not None and (last is None or start > last[0]):
                last = (start, token.start())
        elif token.group().endswith("{") and not token.group().startswith("\\{"):
            open_braces.append(token.end() if token.group() != "{" else None)
    if last is None:
        return None
    return text[slice(*last)].strip() or None


def delivery(text: str) -> str | None:
    """What stands in the last `<delivery>`; None if there is none, or nothing in it."""
    found = _last(_DELIVERY, text)
    return found and found.strip()


def solution(text: str) -> str | None:
    """The program in the last `<solution>`, without a fence around it; None if there is none, or nothing in it."""
    inner = _last(_SOLUTION, text)
    if inner is None:
        return None
    fenced = _FENCE.findall(inner)
    return (fenced[-1].strip("\n") if fenced else inner) or None


def formatted_answer(text: str, task_type: TaskType) -> str | None:
    """The final answer in the format that is due, None without one."""
    return boxed(text) if task_type == "math" else solution(text)


def final_answer(text: str, task_type: TaskType) -> Answer | None:
    """The final answer of a text: of a workflow's result, an agent's turn or a tool's output.

    Math: the last box, else the last delivery, else the text itself if it is one short line.
    Code: the last solution, else the last fenced block, else the text itself.
    """
    formatted = formatted_answer(text, task_type)
    if formatted is not None:
        return Answer(formatted, "boxed" if task_type == "math" else "solution")
    if task_type == "code":
        fenced = _FENCE.findall(text)
        bare = fenced[-1].strip("\n") if fenced else text.strip("\n")
        return Answer(bare, "bare") if bare.strip() else None
    delivered = delivery(text)
    if delivered is not None:
        return Answer(delivered, "delivery")
    bare = text.strip()
    if not bare or "\n" in bare or len(bare) > MAX_BARE_CHARACTERS:
        return None
    return Answer(bare, "bare")


def _last(pattern: re.Pattern[str], text: str) -> str | None:
    found = pattern.findall(text)
    return (found[-1].strip("\n").rstrip() if found[-1].strip() else None) if found else None
