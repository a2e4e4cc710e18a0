"""The messages that ask the designer for a design.

A prompt is a folder with `system.txt` and `user.txt`. In both, `{question}`, `{task_type}` and
`{answer_format}` stand for the task's; every other brace is a brace, and what is put in is not searched
again. The files are taken as they are, to the last newline; an empty `system.txt` means that there is no
system message.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from troupe_inference.transcript import Message, Role

BUILT_IN: Final = Path(__file__).parent / "prompts"
_FIELD: Final = re.compile(r"\{(question|task_type|answer_format)\}")


class PromptError(ValueError):
    """A prompt that does not exist or cannot be used."""


class TaskType(Enum):
    """What grades a task, and so in which format its answer is due."""

    MATH = "math"
    CODE = "code"


ANSWER_FORMATS: Final[Mapping[TaskType, str]] = {
    TaskType.MATH: "the final answer is a value, due in \\boxed{}.",
    TaskType.CODE: "the final answer is a Python program, due in <solution></solution>; hidden tests are run on it.",
}


@dataclass(frozen=True, slots=True)
class Prompt:
    """Templates of the system and the user message."""

    system: str
    user: str

    def messages(self, question: str, task_type: TaskType) -> tuple[Message, ...]:
        """The messages for one task."""
        values = {
            "question": question,
            "task_type": task_type.value,
            "answer_format": ANSWER_FORMATS[task_type],
        }
        system = _fill(self.system, values)
        user = Message(Role.USER, _fill(self.user, values))
        return (Message(Role.SYSTEM, system), user) if system else (user,)


def load_prompt(name: str) -> Prompt:
    """The built-in prompt of that name, else the prompt in that folder.

    Raises:
        PromptError: there is neither, a file is missing, or the question stands nowhere in it.
    """
    folder = BUILT_IN / name
    if not re.fullmatch(r"\w+", name) or not folder.is_dir():
        folder = Path(name)
    texts = []
    for file in (folder / "system.txt", folder / "user.txt"):
        try:
            texts.append(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            known = ", ".join(sorted(path.name for path in BUILT_IN.iterdir()))
            raise PromptError(
                f"prompt {name!r}: {file} cannot be read ({error}); name one of {known}, or a folder with "
                "system.txt and user.txt"
            ) from error
    prompt = Prompt(*texts)
    if "{question}" not in prompt.user:
        raise PromptError(f"prompt {name!r}: {folder / 'user.txt'} does not hold {{question}}")
    return prompt


def _fill(template: str, values: Mapping[str, str]) -> str:
    return _FIELD.sub(lambda match: values[match[1]], template)
