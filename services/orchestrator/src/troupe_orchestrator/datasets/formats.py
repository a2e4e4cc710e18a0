"""The file formats by name. An entry point of the group `troupe.datasets` names a further `Format`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any

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

ENTRY_POINT_GROUP = "troupe.datasets"


@dataclass(frozen=True, slots=True)
class Format:
    """How the rows of a file are read."""

    name: str
    matches: Callable[[Row], bool]
    """Whether a row looks like this format, by its keys."""
    read: Callable[[Row, RowPlace], Task]
    """The task in a row; `RowError` where there is none."""


# The first that matches is taken: the more telling keys come first.
BUILT_IN = (
    Format("troupe", troupe.matches, troupe.read),
    Format("humaneval", humaneval.matches, humaneval.read),
    Format("mbpp", mbpp.matches, mbpp.read),
    Format("olympiadbench", olympiadbench.matches, olympiadbench.read),
    Format("gsm8k", gsm8k.matches, gsm8k.read),
    Format("math", math.matches, math.read),
    Format("amc", competitions.matches_amc, competitions.read_amc),
    Format("aime", competitions.matches_aime, competitions.read_aime),
    Format("minerva", minerva.matches, minerva.read),
)


@cache
def known_formats() -> Mapping[str, Format]:
    """All formats by name.

    Raises:
        ValueError: a plug-in is not a `Format`, or takes a name that is taken.
    """
    known = {format_.name: format_ for format_ in BUILT_IN}
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        plugin: Any = entry_point.load()
        if not isinstance(plugin, Format) or plugin.name != entry_point.name or plugin.name in known:
            raise ValueError(
                f"entry point {entry_point.name} of {ENTRY_POINT_GROUP} must be a Format of that name, which no other "
                f"has; got {plugin!r:.200}"
            )
        known[plugin.name] = plugin
    return known
