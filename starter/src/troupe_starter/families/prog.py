"""prog: small programs that read two integers; an agent that writes the program gets it right. Graded by
hidden tests.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from random import Random

from troupe_starter.task import Split, Task, TestCase, digest, side, task_id

NAME = "prog"
CONSTANTS = range(10, 100)
TESTS = 5


@dataclass(frozen=True)
class Combination:
    """How a program combines its two integers: in words, in python, and as a function."""

    words: str
    code: str
    of: Callable[[int, int], int]


COMBINATIONS: Mapping[str, Combination] = {
    "sum": Combination("the sum", "a + b", lambda a, b: a + b),
    "product": Combination("the product", "a * b", lambda a, b: a * b),
    "larger": Combination("the larger", "max(a, b)", max),
    "smaller": Combination("the smaller", "min(a, b)", min),
    "distance": Combination("the distance", "abs(a - b)", lambda a, b: abs(a - b)),
}
_SIGN_WORDS = {"+": "plus", "-": "minus"}
SIGNS = tuple(_SIGN_WORDS)


@dataclass(frozen=True)
class Operands:
    """Canonical operands: print `combination` of the two integers, `sign` a `constant`."""

    combination: str
    sign: str
    constant: int

    @property
    def side(self) -> Split:
        return side(NAME, self.combination, self.sign, self.constant)

    @property
    def symbols(self) -> str:
        """What the program prints, as a python expression in a and b: what a reader delivers."""
        return f"{COMBINATIONS[self.combination].code} {self.sign} {self.constant}"

    def output(self, first: int, second: int) -> int:
        """What the program prints for two integers."""
        combined = COMBINATIONS[self.combination].of(first, second)
        return combined + self.constant if self.sign == "+" else combined - self.constant


def every() -> Iterator[Operands]:
    """Every group of operands."""
    for combination in COMBINATIONS:
        for sign in SIGNS:
            for constant in CONSTANTS:
                yield Operands(combination, sign, constant)


def draw(random: Random) -> Operands:
    """One group of operands at random."""
    return Operands(random.choice(tuple(COMBINATIONS)), random.choice(SIGNS), random.choice(CONSTANTS))


def task(operands: Operands) -> Task:
    """The task with these operands, and the hidden tests that they decide."""
    question = (
        f"Write a program that reads two integers and prints {COMBINATIONS[operands.combination].words} "
        f"{_SIGN_WORDS[operands.sign]} {operands.constant}"
    )
    name = task_id(NAME, operands.combination, operands.sign, operands.constant)
    return Task(name, NAME, question, "code", tests=_tests(operands))


def _tests(operands: Operands) -> tuple[TestCase, ...]:
    """Pairs in both orders and of both signs, so that no two combinations agree on all of them."""
    random = Random(digest("tests", operands.combination, operands.sign, operands.constant))
    low, high = random.randint(-99, -10), random.randint(10, 99)
    pairs = [(low, high), (high, low), (random.randint(3, 50), random.randint(51, 99))]
    while len(pairs) < TESTS:
        pairs.append((random.randint(-99, 99), random.randint(-99, 99)))
    return tuple(TestCase(f"{first} {second}\n", f"{operands.output(first, second)}\n") for first, second in pairs)
