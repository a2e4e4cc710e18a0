"""The file formats by name: those of this package, and those of plug-ins (group `troupe.datasets`).

A format says whether a row is one of its own and reads the task in it; a module with these two functions is one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from troupe_contracts.plugins import PluginError, Registry

from troupe_orchestrator.datasets import (
    competitions,
    gsm8k,
    humaneval,
    math,
    mbpp,
    minerva,
    olympiadbench,
    troupe,
)
from troupe_orchestrator.datasets.rows import Row, RowPlace
from troupe_orchestrator.datasets.task import Task


class Format(Protocol):
    """How the rows of a file are read."""

    def matches(self, row: Row) -> bool:
        """Whether a row looks like this format, by its keys."""

    def read(self, row: Row, place: RowPlace) -> Task:
        """The task in a row.

        Raises:
            RowError: there is none; the text names the field.
        """


@dataclass(frozen=True, slots=True)
class _Functions:
    """A format of a module that has several."""

    matches: Callable[[Row], bool]
    read: Callable[[Row, RowPlace], Task]


# In the order in which they are tried: the more telling keys come first, formats of plug-ins last.
FORMATS: Final[Registry[Format]] = Registry(
    "data set format",
    Format,
    {
        "troupe": troupe,
        "humaneval": humaneval,
        "mbpp": mbpp,
        "olympiadbench": olympiadbench,
        "gsm8k": gsm8k,
        "math": math,
        "amc": _Functions(competitions.matches_amc, competitions.read_amc),
        "aime": _Functions(competitions.matches_aime, competitions.read_aime),
        "minerva": minerva,
    },
)


def candidates(broken: list[str]) -> Iterator[tuple[str, Format]]:
    """All formats that a file may be told to have, in the order in which they are tried.

    Args:
        broken: takes why a plug-in is none of them; it matters only where nothing else matches.
    """
    yield from FORMATS.built_in.items()
    for name in FORMATS.names():
        if name not in FORMATS.built_in:
            try:
                yield name, FORMATS.find(name)
            except PluginError as error:
                broken.append(str(error))
