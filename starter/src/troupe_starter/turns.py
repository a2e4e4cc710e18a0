r"""What an agent of each kind says, right or wrong. Pure.

An agent that wants python writes a fenced block and ends its turn; what a final turn delivers is due in
`<delivery>\boxed{}</delivery>`, a program in `<delivery><solution>` with the program inside. Wrong turns
keep to the format: they are wrong answers, not noise.
"""

import re

from troupe_starter.families.expression import Expression

_CODE = re.compile(r"```python\nprint\((\d+ \* \d+ [+-] \d+)\)\n```")
_DELIVERY = re.compile(r"<delivery>(.*?)</delivery>", re.DOTALL)
_SOLUTION = re.compile(r"<solution>\n(.*)\n</solution>", re.DOTALL)
_BOXED = re.compile(r"\\boxed\{(-?\d+)\}")


def tool_call(expression: Expression) -> str:
    """A turn that asks python for the value of an expression."""
    return f"```python\nprint({expression})\n```"


def value_answer(value: int) -> str:
    """A final turn with a number."""
    return f"<delivery>\\boxed{{{value}}}</delivery>"


def program_answer(code: str) -> str:
    """A final turn with the program that prints an expression in a and b."""
    return program_text(program_for(code))


def program_for(code: str) -> str:
    """The program that reads two integers and prints an expression in a and b."""
    return f"a, b = map(int, input().split())\nprint({code})"


def number_program_answer(number: int) -> str:
    """A final turn with a program that prints a number, whatever it reads: what those say who write no
    programs.
    """
    return program_text(f"print({number})")


def program_text(program: str) -> str:
    return f"<delivery><solution>\n{program}\n</solution></delivery>"


def reading(symbols: str) -> str:
    """A reader's turn: the task in digits and symbols."""
    return f"<delivery>{symbols}</delivery>"


def asked_expression(turn: str) -> Expression | None:
    """The expression that a turn asks python for, None when it is no demonstrated tool call."""
    found = _CODE.fullmatch(turn)
    if found is None:
        return None
    left, _, right, sign, addend = found[1].split(" ")
    return Expression(int(left), int(right), sign, int(addend))


def delivery(turn: str) -> str | None:
    """What a turn delivers."""
    found = _DELIVERY.fullmatch(turn)
    return found[1] if found else None


def boxed_value(turn: str) -> int | None:
    """The number that a final turn answers."""
    inner = delivery(turn)
    found = _BOXED.fullmatch(inner) if inner is not None else None
    return int(found[1]) if found else None


def program_in(turn: str) -> str | None:
    """The program that a final turn gives."""
    inner = delivery(turn)
    found = _SOLUTION.fullmatch(inner) if inner is not None else None
    return found[1] if found else None
