"""Where each value of an effective config comes from: the line of the YAML that gives it, or the default. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from troupe_orchestrator.run_config import RunConfig, parse_run_config


@dataclass(frozen=True, slots=True)
class ConfigValue:
    """One leaf of the effective config."""

    key: str
    value: str
    """As YAML."""
    origin: str
    """`default`, or `line N`."""


def describe_config(text: str) -> tuple[ConfigValue, ...]:
    """Every leaf of the config that `text` gives.

    Raises:
        ConfigError: it cannot be used.
    """
    config: RunConfig = parse_run_config(text)
    lines = dict(_lines(yaml.compose(text, Loader=yaml.SafeLoader), ""))
    return tuple(
        ConfigValue(key, _yaml(value), _origin(key, lines))
        for key, value in _leaves(config.model_dump(mode="json"), "")
    )


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    empty = True
    for name, child in children:
        empty = False
        yield from _leaves(child, f"{key}.{name}".lstrip("."))
    if empty:
        yield key, value


def _lines(node: yaml.Node | None, key: str) -> Iterator[tuple[str, int]]:
    """Full name and line of everything that the text gives."""
    if isinstance(node, yaml.MappingNode):
        for name, child in node.value:
            yield from _lines(child, f"{key}.{name.value}".lstrip("."))
    elif isinstance(node, yaml.SequenceNode):
        for number, child in enumerate(node.value):
            yield from _lines(child, f"{key}.{number}")
    elif node is not None:
        yield key, node.start_mark.line + 1


def _origin(key: str, lines: dict[str, int]) -> str:
    return f"line {lines[key]}" if key in lines else "default"


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")
