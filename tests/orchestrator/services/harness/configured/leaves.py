"""The leaves of a config, and configs that differ in one of them."""

from __future__ import annotations

import copy
import enum
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union

from pydantic import BaseModel
from troupe_orchestrator.credit.registry import ESTIMATORS

Leaf = tuple[tuple[str | int, ...], Any, Any]


def leaves(model: type[BaseModel], value: dict[str, Any], path: tuple[str | int, ...] = ()) -> Iterator[Leaf]:
    """Every leaf of a config: its path, the annotation of its field, its value."""
    parsed = model.model_validate(value)
    for name, spec in model.model_fields.items():
        yield from _leaves(getattr(parsed, name), spec.annotation, (*path, name))


def _leaves(value: Any, annotation: Any, path: tuple[str | int, ...]) -> Iterator[Leaf]:
    if isinstance(value, BaseModel):
        for name, spec in type(value).model_fields.items():
            yield from _leaves(getattr(value, name), spec.annotation, (*path, name))
    elif isinstance(value, tuple):
        for number, child in enumerate(value):
            yield from _leaves(child, type(child), (*path, number))
    elif isinstance(value, dict) and path == ("credit", "options"):
        options = ESTIMATORS.find("hierarchical").options
        for name, spec in options.model_fields.items():
            yield from _leaves(value.get(name, spec.default), spec.annotation, (*path, name))
    else:
        yield path, annotation, value


def others(annotation: Any, value: Any) -> Iterator[Any]:
    """Values that differ, the likeliest legal one first."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        yield from others(arguments[0], value)
    elif origin in (Union, types.UnionType):
        for argument in arguments:
            yield from others(argument, value)
    elif origin is Literal:
        yield from (each for each in arguments if each != value)
    elif isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        yield from (each.value for each in annotation if each != value)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield {}
    elif annotation is bool:
        yield not value
    elif annotation is int:
        yield from ([value + 1, value - 1, value + 2] if isinstance(value, int) else [1, 2])
    elif annotation is float:
        yield from ([value / 2, value * 2, value + 0.5] if isinstance(value, int | float) and value else [0.5, 2.0])
    elif annotation is str:
        yield f"{value or ''}x"
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        yield {**value, "unknown": 0.5}
    elif isinstance(annotation, type) and issubclass(annotation, Path):
        yield f"{value}.other"


def changed(config: dict[str, Any], path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    """The config with one leaf replaced."""
    result = copy.deepcopy(config)
    place: Any = result
    for part in path[:-1]:
        place = place[part] if isinstance(part, int) else place.setdefault(part, {})
    place[path[-1]] = value
    return result


def alternatives(model: type[BaseModel], config: dict[str, Any], leaf: Leaf) -> list[dict[str, Any]]:
    """The config with other legal values of the leaf; none where the model refuses every other value beside the rest."""
    return [mutated for mutated, refusal in _tried(model, config, leaf) if not refusal]


def refusals(model: type[BaseModel], config: dict[str, Any], leaf: Leaf) -> list[str]:
    """What the model says of the values that it refuses."""
    return [refusal for _, refusal in _tried(model, config, leaf) if refusal]


def _tried(model: type[BaseModel], config: dict[str, Any], leaf: Leaf) -> Iterator[tuple[dict[str, Any], str]]:
    path, annotation, value = leaf
    by_name = path == ("credit", "estimator")
    candidates = [each for each in ESTIMATORS.names() if each != value] if by_name else list(others(annotation, value))
    assert candidates, f"no other value is known for {path} of type {annotation}"
    for candidate in candidates:
        mutated = changed(config, path, candidate)
        try:
            model.model_validate(mutated)
        except ValueError as refusal:
            yield mutated, str(refusal)
        else:
            yield mutated, ""


def is_named(leaf: Leaf, refusal: str) -> bool:
    """Whether a refusal says which leaf is at fault."""
    own = [part for part in leaf[0] if isinstance(part, str)][-1]
    return re.search(rf"\b{own}\b", refusal) is not None


def name_of(leaf: Leaf) -> str:
    return ".".join(map(str, leaf[0]))
