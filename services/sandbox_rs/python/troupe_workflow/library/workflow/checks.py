"""Checks of the arguments that a script passes. Scripts are generated: a wrong argument is a clear error, at once.

Each check names the class, the argument, what it must be and what it was; it raises TypeError or ValueError
and returns nothing, so that type checkers keep what they know.
"""

from collections.abc import Mapping, Sequence


def _refuse(owner: str, argument: str, wanted: str, value: object) -> str:
    return f"{owner}: {argument} must be {wanted}, got {value!r:.80} ({type(value).__name__})"


def instance(owner: str, argument: str, value: object, kind: type, *, optional: bool = False) -> None:
    if not (isinstance(value, kind) or (optional and value is None)):
        wanted = f"{kind.__name__} or None" if optional else kind.__name__
        raise TypeError(_refuse(owner, argument, wanted, value))


def instances(owner: str, argument: str, values: object, kind: type, *, at_least: int = 1) -> None:
    """A list or tuple of a given kind."""
    if not isinstance(values, list | tuple):
        raise TypeError(_refuse(owner, argument, f"a list of {kind.__name__}", values))
    for index, value in enumerate(values):
        instance(owner, f"{argument}[{index}]", value, kind)
    if len(values) < at_least:
        raise ValueError(_refuse(owner, argument, f"a list of at least {at_least}", values))


def name(owner: str, argument: str, value: object) -> None:
    """A name that can stand in a line of a prompt."""
    if not isinstance(value, str):
        raise TypeError(_refuse(owner, argument, "a string", value))
    if not value.strip() or not value.isprintable() or len(value) > 200:
        raise ValueError(_refuse(owner, argument, "one printable line of 1 to 200 characters", value))


def text(owner: str, argument: str, value: object, *, optional: bool = False) -> None:
    instance(owner, argument, value, str, optional=optional)


def count(owner: str, argument: str, value: object, *, at_least: int) -> None:
    """An integer; a bool is none."""
    wanted = f"an integer of at least {at_least}"
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(_refuse(owner, argument, wanted, value))
    if value < at_least:
        raise ValueError(_refuse(owner, argument, wanted, value))


def flag(owner: str, argument: str, value: object) -> None:
    instance(owner, argument, value, bool)


def number(owner: str, argument: str, value: object, *, above: float | None = None) -> None:
    """A finite number, above a bound if one is given; a bool is none."""
    wanted = "a finite number" if above is None else f"a finite number above {above:g}"
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(_refuse(owner, argument, wanted, value))
    if not abs(value) < float("inf") or (above is not None and value <= above):
        raise ValueError(_refuse(owner, argument, wanted, value))


def numbers(owner: str, argument: str, values: object) -> None:
    """A list or tuple of finite numbers."""
    if not isinstance(values, list | tuple):
        raise TypeError(_refuse(owner, argument, "a list of numbers", values))
    for index, value in enumerate(values):
        number(owner, f"{argument}[{index}]", value)


def choice(owner: str, argument: str, value: object, choices: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(_refuse(owner, argument, "one of " + ", ".join(choices), value))


def function(owner: str, argument: str, value: object, *, optional: bool = False) -> None:
    if not (callable(value) or (optional and value is None)):
        raise TypeError(_refuse(owner, argument, "a function", value))


def mapping(owner: str, argument: str, value: object, *, optional: bool = False) -> None:
    if not (isinstance(value, Mapping) or (optional and value is None)):
        raise TypeError(_refuse(owner, argument, "a dict", value))
