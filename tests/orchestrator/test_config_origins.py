"""Where each value of an effective config comes from."""

import pytest
import yaml
from troupe_orchestrator.config_origins import describe_config
from troupe_orchestrator.run_config import ConfigError, parse_run_config

TEXT = """\
dataset: {train: a.jsonl}
steps: 4
stages:
  - {train: executor, steps: 2}
  - train: designer
    steps: 2
optimization:
  learning_rate: 1.0e-4
"""


def test_given_values_name_their_line_and_the_others_are_defaults() -> None:
    origins = {value.key: (value.value, value.origin) for value in describe_config(TEXT)}
    assert origins["steps"] == ("4", "line 2")
    assert origins["stages.1.train"] == ("designer", "line 5")
    assert origins["optimization.learning_rate"] == ("0.0001", "line 8")
    assert origins["optimization.clip_low"] == ("0.2", "default")
    assert origins["rollout.designs"] == ("4", "default")


def test_every_leaf_of_the_effective_config_is_listed() -> None:
    described = {value.key for value in describe_config(TEXT)}

    def leaves(value: object, key: str) -> set[str]:
        children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
        if not children:
            return {key}
        return {leaf for name, child in children for leaf in leaves(child, f"{key}.{name}".lstrip("."))}

    assert described == leaves(parse_run_config(TEXT).model_dump(mode="json"), "")


def test_values_are_yaml_that_reads_back() -> None:
    values = {value.key: yaml.safe_load(value.value) for value in describe_config(TEXT)}
    assert values["optimization.learning_rate"] == 1e-4
    assert values["repeat"] is True
    assert values["dataset.format"] is None
    assert values["delivery_instruction.math"] == parse_run_config(TEXT).delivery_instruction.math


def test_a_config_that_cannot_be_used_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown key"):
        describe_config(TEXT + "extra: 1\n")
