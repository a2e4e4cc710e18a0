"""Plug-ins: parts that other distributions add by entry points, one group for each kind (`GROUPS`).

The same rules hold for every kind. A plug-in is loaded when its name is asked for and not before, so that a broken one
hurts nobody who does not use it. A name that two distributions take, or one of them and Troupe, is refused when it is
asked for, naming both. What was loaded must have the members of its kind's Protocol, and take their arguments. Every
error says which distribution, which group and what to do.
"""

import inspect
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import FunctionType
from typing import Any, Final, Generic, TypeVar, cast, get_type_hints

GROUPS: Final[Mapping[str, str]] = {
    "data set format": "troupe.datasets",
    "grader": "troupe.graders",
    "reward term": "troupe.rewards",
    "estimator": "troupe.estimators",
    "engine": "troupe.engines",
    "workflow node": "troupe.nodes",
}
"""Kind of plug-in to its group of entry points."""
_TRACEBACK_LINES: Final = 3
Part = TypeVar("Part")


class PluginError(ValueError):
    """A plug-in that cannot be used; says whose it is and what to do."""


class UnknownPluginError(PluginError):
    """A name that nothing has; says which there are and where they come from."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """One entry point, not loaded."""

    kind: str
    name: str
    target: str
    """What it names: `module`, or `module:attribute`."""
    distribution: str
    """Name and version."""
    entry_point: EntryPoint

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} of {self.distribution} (group {GROUPS[self.kind]}, {self.target})"


def installed(kind: str) -> tuple[Plugin, ...]:
    """All plug-ins of a kind that are installed, by name."""
    return _installed(kind, tuple(sys.path))


@cache
def _installed(kind: str, _search_path: tuple[str, ...]) -> tuple[Plugin, ...]:
    found = {_plugin(kind, entry_point) for entry_point in entry_points(group=GROUPS[kind])}
    return tuple(sorted(found, key=lambda plugin: (plugin.name, plugin.distribution)))


def _plugin(kind: str, entry_point: EntryPoint) -> Plugin:
    owner = entry_point.dist
    distribution = "an unknown distribution" if owner is None else f"{owner.name} {owner.version}"
    return Plugin(kind, entry_point.name, entry_point.value, distribution, entry_point)


def clash(kind: str, name: str, built_in: bool) -> str:
    """Why a name is nobody's to take; empty if it is one plug-in's, or only Troupe's own."""
    owners = ["Troupe itself"] if built_in else []
    owners += [f"{plugin.distribution} ({plugin.target})" for plugin in installed(kind) if plugin.name == name]
    if len(owners) < 2:
        return ""
    return (
        f"the {kind} {name!r} is named by {' and by '.join(owners)}: rename the entry point of group {GROUPS[kind]} "
        "in one, or uninstall it"
    )


class Registry(Generic[Part]):
    """The parts of one kind by name: Troupe's own, and those of plug-ins.

    Args:
        kind: a key of `GROUPS`.
        protocol: what every part must be; a Protocol class.
        built_in: Troupe's own, in an order that may matter.
    """

    def __init__(self, kind: str, protocol: type[Any], built_in: Mapping[str, Part]) -> None:
        self._kind = kind
        self._protocol = protocol
        self.built_in = dict(built_in)

    def find(self, name: str) -> Part:
        """The part of that name.

        Raises:
            UnknownPluginError: there is none.
            PluginError: it is broken, is not what its kind must be, or two have that name.
        """
        clashing = clash(self._kind, name, name in self.built_in)
        if clashing:
            raise PluginError(clashing)
        if name in self.built_in:
            return self.built_in[name]
        for plugin in installed(self._kind):
            if plugin.name == name:
                return cast(Part, load(plugin, self._protocol))
        raise UnknownPluginError(f"no {self._kind} is named {name!r}; known: {self.known()}")

    def names(self) -> tuple[str, ...]:
        """All names, Troupe's own first. A plug-in's may turn out broken when it is asked for."""
        plugins = (plugin.name for plugin in installed(self._kind))
        return tuple(dict.fromkeys((*self.built_in, *plugins)))

    def known(self) -> str:
        """All names for people, those of plug-ins with the distribution that they come from."""
        plugins = [f"{plugin.name} (of {plugin.distribution})" for plugin in installed(self._kind)]
        return (
            ", ".join([*sorted(self.built_in), *plugins]) or f"none; a plug-in of group {GROUPS[self._kind]} adds one"
        )


def load(plugin: Plugin, protocol: type[Any]) -> object:
    """What a plug-in names, checked.

    Raises:
        PluginError: it cannot be imported, or is not what its kind must be.
    """
    try:
        part: object = plugin.entry_point.load()
    # Code of others: whatever it raises is why it cannot be used, and SystemExit must not end a service.
    except (Exception, SystemExit) as error:
        end = "".join(traceback.format_exception(error)).strip().splitlines()[-_TRACEBACK_LINES:]
        raise PluginError(
            f"the {plugin} cannot be loaded: mend or uninstall it; its traceback ends: {' | '.join(map(str.strip, end))}"
        ) from error
    problems = mismatches(part, protocol)
    if problems:
        raise PluginError(
            f"the {plugin} is no {protocol.__name__} as {protocol.__module__} says: {'; '.join(problems)}; mend it, or "
            "install a version that fits this Troupe"
        )
    return part


def mismatches(part: object, protocol: type[Any]) -> list[str]:
    """What a part lacks of a Protocol: members, the arguments and the kind of its methods, simple types."""
    problems = []
    for name, due in vars(protocol).items():
        if name.startswith("_") and name != "__call__":
            continue
        label = "it" if name == "__call__" else f"`{name}`"
        if name != "__call__" and not hasattr(part, name):
            problems.append(f"`{name}` is missing")
        elif isinstance(due, FunctionType):
            problems += _call_mismatches(label, part if name == "__call__" else getattr(part, name), due)
        elif isinstance(due, property):
            problems += _type_mismatches(label, getattr(part, name), get_type_hints(due.fget)["return"])
    return problems


def _call_mismatches(label: str, function: object, due: FunctionType) -> list[str]:
    if not callable(function):
        return [f"{label} must be callable, got {type(function).__name__}"]
    if inspect.iscoroutinefunction(due) != inspect.iscoroutinefunction(function):
        return [f"{label} must {'' if inspect.iscoroutinefunction(due) else 'not '}be an async function"]
    arguments = list(inspect.signature(due).parameters)[1:]
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return [f"{label} must take the arguments ({', '.join(arguments)}), has {inspect.signature(function)}"]
    except ValueError:  # a callable without a signature: known when it is called
        return []
    return []


def _type_mismatches(label: str, value: object, due: Any) -> list[str]:
    wanted: object = due
    if getattr(due, "__origin__", None) is type:  # type[Base]
        base = due.__args__[0]
        fits = isinstance(value, type) and issubclass(value, base)
        wanted = f"a subclass of {base.__name__}"
    else:
        fits = not isinstance(due, type) or isinstance(value, due)
        wanted = f"a {due.__name__}" if isinstance(due, type) else due
    return [] if fits else [f"{label} must be {wanted}, got {value!r:.60}"]
