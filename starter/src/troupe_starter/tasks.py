"""The task suite: three families in equal shares, split into train and held-out.

Invariants: the two sides are disjoint by construction (see `task.side`); `sample` is a function of its
arguments and gives distinct tasks; families take turns, so that every prefix of a sample is balanced.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Protocol, TypeVar, cast

from troupe_starter.families import calc, prog, word
from troupe_starter.task import Split, Task


class Operands(Protocol):
    """Canonical operands of some family."""

    @property
    def side(self) -> Split: ...

    @property
    def symbols(self) -> str:
        """What is asked, in digits and symbols."""


OperandsT = TypeVar("OperandsT", bound=Operands)


class Family(Protocol[OperandsT]):
    """What the module of a family offers."""

    NAME: str

    def every(self) -> Iterator[OperandsT]: ...

    def draw(self, random: Random, /) -> OperandsT: ...

    def task(self, operands: OperandsT, /) -> Task: ...


FAMILIES: Mapping[str, Family[Operands]] = {
    module.NAME: cast("Family[Operands]", module) for module in (calc, prog, word)
}


def operands_of(family: str, split: Split) -> Iterator[Operands]:
    """Every group of operands of a family on one side, in a fixed order."""
    return (operands for operands in FAMILIES[family].every() if operands.side == split)


def draw_operands(family: str, split: Split, random: Random) -> Operands:
    """One group of operands of a family on one side, at random."""
    while True:
        operands = FAMILIES[family].draw(random)
        if operands.side == split:
            return operands


def sample(split: Split, count: int, seed: int) -> list[Task]:
    """`count` distinct tasks of one side; the families take turns.

    Raises ValueError when a family has fewer tasks than its share.
    """
    random = Random(f"{split}/{seed}")
    names = list(FAMILIES)
    shares = {name: len(range(index, count, len(names))) for index, name in enumerate(names)}
    columns = [_sample_family(name, split, share, random) for name, share in shares.items()]
    return [columns[index % len(names)][index // len(names)] for index in range(count)]


def _sample_family(family: str, split: Split, count: int, random: Random) -> list[Task]:
    """Distinct tasks of one family: all of a small one in a shuffled order, draws from a large one."""
    few = []
    for operands in operands_of(family, split):
        few.append(operands)
        if len(few) > 4 * count:
            break
    if len(few) < count:
        raise ValueError(f"family {family} has {len(few)} {split} tasks, {count} were asked for: ask for fewer tasks")
    if len(few) <= 4 * count:
        random.shuffle(few)
        return [FAMILIES[family].task(operands) for operands in few[:count]]
    drawn: dict[Operands, None] = {}
    while len(drawn) < count:
        drawn.setdefault(draw_operands(family, split, random))
    return [FAMILIES[family].task(operands) for operands in drawn]


def write_jsonl(tasks: list[Task], path: Path) -> None:
    """Writes a problem file, whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text("".join(task.to_json() + "\n" for task in tasks))
    part.replace(path)
