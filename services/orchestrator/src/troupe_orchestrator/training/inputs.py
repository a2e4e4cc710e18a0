"""What a run is made from, read and checked: its config, the overrides of a fork, the training file."""

import hashlib
from typing import Any

import yaml
from troupe_contracts.errors import InvalidArgument

from troupe_orchestrator.credit.registry import ESTIMATORS
from troupe_orchestrator.datasets.loading import MAX_BYTES, DatasetError, load
from troupe_orchestrator.datasets.reading import read_data_set
from troupe_orchestrator.run_config import ConfigError, RunConfig, parse_mapping, parse_run_config
from troupe_orchestrator.training.held_out import load_held_out
from troupe_orchestrator.training.record import TrainingData


def parse(text: str) -> RunConfig:
    """A run's config.

    Raises:
        InvalidArgument: it cannot be used; each key is named.
    """
    try:
        config = parse_run_config(text)
    except ConfigError as error:
        raise _refusal(error) from error
    if ESTIMATORS.find(config.credit.estimator).needs_values:
        raise InvalidArgument(
            "config.credit.estimator",
            f"{config.credit.estimator} needs learned values of task prompts, which no learner serves yet: "
            "choose hierarchical, leave_one_out or agent_turn",
        )
    return config


def overridden(base: str, overrides: str) -> tuple[RunConfig, frozenset[str]]:
    """A config with some keys replaced, and which keys of the first level those are.

    Sections are merged; everything else, a list such as `stages` too, replaces what the base has.

    Raises:
        InvalidArgument: the result cannot be used; each key is named.
    """
    if not overrides.strip():
        return parse(base), frozenset()
    try:
        given = parse_mapping(overrides)
        merged = _merged(parse_mapping(base), given)
    except ConfigError as error:
        raise _refusal(error) from error
    return parse(yaml.safe_dump(merged, sort_keys=False)), frozenset(str(key) for key in given)


def load_data(config: RunConfig) -> TrainingData:
    """The training tasks, and what is held out. A run does not start on a file with bad lines: they are all named.

    Raises:
        InvalidArgument: the file cannot be read or used.
    """
    path = config.dataset.train
    content = read_data_set(path, MAX_BYTES, "config.dataset.train")
    try:
        dataset = load(path.name, content, config.dataset.format, config.dataset.grader)
    except DatasetError as error:
        raise InvalidArgument("config.dataset.train", str(error)) from error
    if dataset.errors:
        raise InvalidArgument.every(
            ("config.dataset.train", f"{bad.file}:{bad.line}: {bad.message}") for bad in dataset.errors[:20]
        )
    tasks = dataset.tasks[: config.dataset.limit]
    return TrainingData(tasks, hashlib.sha256(content).hexdigest(), load_held_out(config, tasks))


def _merged(base: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    return base | {
        key: _merged(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        for key, value in given.items()
    }


def _refusal(error: ConfigError) -> InvalidArgument:
    return InvalidArgument.every((f"config.{key}", message) for key, message in error.problems)
