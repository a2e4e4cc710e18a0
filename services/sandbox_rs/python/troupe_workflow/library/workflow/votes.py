r"""Counts answers. Pure.

An answer is compared as a value: the program in `<solution>`, else `\boxed{}`, else the delivery,
normalised so that 1.50 equals \frac{3}{2}. This is for counting votes only; grading is done elsewhere, with
other means.
"""

import math
import re
from collections.abc import Sequence

from . import replies

# Longest number that is compared by value; beyond it the digits are compared as text.
MAX_DIGITS = 200

_NUMBER = re.compile(r"([+-]?)(\d*)(?:\.(\d*))?")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d*)?")
_FRACTION = re.compile(r"([+-]?)\\[dt]?frac\{([^{}]+)\}\{([^{}]+)\}")
_SLASH = re.compile(r"([^/]+)/([^/]+)")
_WRAPPED = re.compile(r"\\(?:text|mathrm|mathbf|boxed)\{([^{}]*)\}")
_SPACING = re.compile(r"\\[,;:! ]|\\left|\\right|\\displaystyle|[\s$]")


def answer_of(reply: str) -> str | None:
    """The normalised answer of a reply, None if it gives none."""
    program = replies.solution(reply)
    if program is not None:
        return normalise_program(program)
    value = replies.boxed(reply)
    if not value:
        value = replies.delivery(reply)
    return (value and normalise_value(value)) or None


def winner(answers: Sequence[str | None], weights: Sequence[float]) -> int | None:
    """Position of the first answer with the greatest total weight; None if nobody answers."""
    totals: dict[str, float] = {}
    for answer, weight in zip(answers, weights, strict=True):
        if answer is not None:
            totals[answer] = totals.get(answer, 0.0) + weight
    if not totals:
        return None
    # max keeps the first of equals, and a dictionary keeps the order in which answers came.
    return answers.index(max(totals, key=lambda answer: totals[answer]))


def is_split(answers: Sequence[str | None]) -> bool:
    """Whether those who answer differ."""
    return len({answer for answer in answers if answer is not None}) > 1


def normalise_program(program: str) -> str:
    """A program without comment lines, blank lines and white space at line ends."""
    lines = (line.rstrip() for line in program.splitlines())
    return "\n".join(line for line in lines if line and not line.lstrip().startswith("#"))


def normalise_value(value: str) -> str:
    """One spelling for equal values: exact rationals as p/q in lowest terms, other text without LaTeX's spacing."""
    text = _WRAPPED.sub(r"\1", value)
    text = _SPACING.sub("", text).rstrip(".")
    rational = _rational(text)
    if rational is None:
        return text
    numerator, denominator = rational
    return str(numerator) if denominator == 1 else f"{numerator}/{denominator}"


def _rational(text: str) -> tuple[int, int] | None:
    """The value of a number, a LaTeX fraction or a quotient, in lowest terms."""
    if fraction := _FRACTION.fullmatch(text):
        sign, above, below = fraction.groups()
        quotient = _quotient(above, below)
        return quotient and ((-quotient[0], quotient[1]) if sign == "-" else quotient)
    if slash := _SLASH.fullmatch(text):
        return _quotient(*slash.groups())
    return _decimal(text)


def _quotient(above: str, below: str) -> tuple[int, int] | None:
    numerator, denominator = _decimal(above), _decimal(below)
    if numerator is None or denominator is None or denominator[0] == 0:
        return None
    return _lowest(numerator[0] * denominator[1], numerator[1] * denominator[0])


def _decimal(text: str) -> tuple[int, int] | None:
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    match = _NUMBER.fullmatch(text)
    if match is None or not (match[2] or match[3]) or len(text) > MAX_DIGITS or not text.isascii():
        return None
    decimals = match[3] or ""
    return _lowest(int(f"{match[1]}{match[2]}{decimals}"), 10 ** len(decimals))


def _lowest(numerator: int, denominator: int) -> tuple[int, int]:
    divisor = math.gcd(numerator, denominator) * (-1 if denominator < 0 else 1)
    return numerator // divisor, denominator // divisor
