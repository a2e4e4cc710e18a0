"""word: arithmetic in words. The policy's python agents only ever copy digits, so that a reader, who
delivers the numbers in digits, and a python agent must work one after the other.
"""

from collections.abc import Iterator
from random import Random

from troupe_starter.families.expression import SIGNS, Operands, all_operands, canonical
from troupe_starter.task import Task, task_id

NAME = "word"
# Numbers of exactly two words: all questions have the same form and length.
NUMBERS = tuple(number for number in range(21, 100) if number % 10)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
ONES = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_SIGN_WORDS = {"+": "plus", "-": "minus"}


def every() -> Iterator[Operands]:
    """Every canonical group of operands."""
    return all_operands(NUMBERS)


def draw(random: Random) -> Operands:
    """One group of operands at random."""
    left, right, addend = random.choices(NUMBERS, k=3)
    return canonical(left, right, random.choice(SIGNS), addend)


def in_words(number: int) -> str:
    """A number of `NUMBERS` in two words."""
    return f"{TENS[number // 10 - 2]} {ONES[number % 10 - 1]}"


def task(operands: Operands) -> Task:
    """The task with these operands."""
    expression = operands.expression
    question = (
        f"What is {in_words(expression.left)} times {in_words(expression.right)} "
        f"{_SIGN_WORDS[expression.sign]} {in_words(expression.addend)}"
    )
    name = task_id(NAME, operands.low, operands.high, operands.sign, operands.addend)
    return Task(name, NAME, question, "math", answer=str(expression.value))
