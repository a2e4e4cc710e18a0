"""What differs between two runs: the leaves of their configs, their provenance, the metrics of their last steps. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from google.protobuf.json_format import MessageToDict
from troupe.v1 import training_pb2


@dataclass(frozen=True, slots=True)
class Difference:
    """A value that two runs do not share; None where one has no such value."""

    name: str
    first: str | None
    second: str | None


@dataclass(frozen=True, slots=True)
class RunDifference:
    """All that differs, by part."""

    first: str
    second: str
    config: tuple[Difference, ...]
    provenance: tuple[Difference, ...]
    metrics: tuple[Difference, ...]
    """Of the last committed step of each."""


def difference(first: training_pb2.Run, second: training_pb2.Run) -> RunDifference:
    """What differs between two runs."""
    return RunDifference(
        first=first.run_id,
        second=second.run_id,
        config=_differences(_leaves(_config(first)), _leaves(_config(second))),
        provenance=_differences(_leaves(_provenance(first)), _leaves(_provenance(second))),
        metrics=_differences(_leaves(_metrics(first)), _leaves(_metrics(second))),
    )


def _config(run: training_pb2.Run) -> Any:
    return yaml.safe_load(run.config) or {}


def _provenance(run: training_pb2.Run) -> dict[str, Any]:
    values: dict[str, Any] = MessageToDict(run.provenance, preserving_proto_field_name=True)
    # That the configs differ is shown key by key.
    values.pop("config_digest", None)
    values["plugins"] = {
        f"{plugin['kind']} {plugin['name']}": f"{plugin['distribution']} {plugin['version']}"
        for plugin in values.get("plugins", [])
    }
    values["policies"] = {policy.pop("policy_id"): policy for policy in values.get("policies", [])}
    return values


def _metrics(run: training_pb2.Run) -> dict[str, Any]:
    values: dict[str, Any] = {name: f"{value:.6g}" for name, value in sorted(run.last_metrics.items())}
    return ({"step": run.committed_steps} if values else {}) | values


def _leaves(value: Any, name: str = "") -> dict[str, str]:
    return dict(_walk(value, name))


def _walk(value: Any, name: str) -> Iterator[tuple[str, str]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if children is None:
        yield name, "null" if value is None else str(value)
        return
    for key, child in children:
        yield from _walk(child, f"{name}.{key}" if name else str(key))


def _differences(first: Mapping[str, str], second: Mapping[str, str]) -> tuple[Difference, ...]:
    names = [*first, *(name for name in second if name not in first)]
    return tuple(
        Difference(name, first.get(name), second.get(name)) for name in names if first.get(name) != second.get(name)
    )
