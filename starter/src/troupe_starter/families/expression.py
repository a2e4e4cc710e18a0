"""`a * b + c` and `a * b - c` over numbers of two digits: what calc and word tasks ask for. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from troupe_starter.task import Split, digest, side

SIGNS = ("+", "-")


@dataclass(frozen=True)
class Expression:
    """`left * right sign addend`."""

    left: int
    right: int
    sign: str
    addend: int

    @property
    def value(self) -> int:
        product = self.left * self.right
        return product + self.addend if self.sign == "+" else product - self.addend

    def __str__(self) -> str:
        return f"{self.left} * {self.right} {self.sign} {self.addend}"


@dataclass(frozen=True)
class Operands:
    """Canonical operands: the order of the factors carries no meaning, so `low` is the smaller."""

    low: int
    high: int
    sign: str
    addend: int

    @property
    def side(self) -> Split:
        """The same for all families: an expression that one family trains on is held out in none."""
        return side("expression", self.low, self.high, self.sign, self.addend)

    @property
    def expression(self) -> Expression:
        """The expression, with the factors in an order that the operands themselves decide."""
        swapped = digest("order", self.low, self.high, self.sign, self.addend) % 2 == 1
        left, right = (self.high, self.low) if swapped else (self.low, self.high)
        return Expression(left, right, self.sign, self.addend)

    @property
    def symbols(self) -> str:
        """The expression in digits: what a reader delivers."""
        return str(self.expression)


def all_operands(numbers: Sequence[int]) -> Iterator[Operands]:
    """Every canonical group of operands over increasing numbers."""
    for index, low in enumerate(numbers):
        for high in numbers[index:]:
            for sign in SIGNS:
                for addend in numbers:
                    yield Operands(low, high, sign, addend)


def canonical(left: int, right: int, sign: str, addend: int) -> Operands:
    return Operands(min(left, right), max(left, right), sign, addend)
