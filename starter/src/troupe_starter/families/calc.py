"""calc: arithmetic beyond what the policy can do in its head; an agent that uses python gets it right."""

from collections.abc import Iterator
from random import Random

from troupe_starter.families.expression import SIGNS, Operands, all_operands, canonical
from troupe_starter.task import Task, digest, task_id

NAME = "calc"
NUMBERS = range(10, 100)
_SIGN_WORDS = {"+": "plus", "-": "minus"}


def every() -> Iterator[Operands]:
    """Every canonical group of operands."""
    return all_operands(NUMBERS)


def draw(random: Random) -> Operands:
    """One group of operands at random."""
    left, right, addend = random.choices(NUMBERS, k=3)
    return canonical(left, right, random.choice(SIGNS), addend)


def task(operands: Operands) -> Task:
    """The task with these operands; they decide its wording too."""
    expression = operands.expression
    if digest("wording", operands) % 2:
        question = f"What is {expression}"
    else:
        question = (
            f"Take the product of {expression.left} and {expression.right} "
            f"{_SIGN_WORDS[expression.sign]} {expression.addend}"
        )
    name = task_id(NAME, operands.low, operands.high, operands.sign, operands.addend)
    return Task(name, NAME, question, "math", answer=str(expression.value))
