"""Keys that a config gives twice: refused by name and line. What YAML itself offers against repetition works."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from troupe_contracts.yaml_keys import load_yaml
from troupe_orchestrator.config_origins import describe_config
from troupe_orchestrator.kubernetes.scaling import ReplicaPlan
from troupe_orchestrator.run_config import (
    ConfigError,
    RunConfig,
    Section,
    ServingConfig,
    parse_config,
    parse_run_config,
)

RUN = """\
dataset: {train: a.jsonl}
steps: 1
stages:
  - train: executor
    steps: 100
    steps: 1
    learning_rate: 1.0e-4
optimization: {clip_low: 0.1, clip_high: 0.3, clip_low: 0.3}
steps: 100
"""
SERVING = """\
temperature: 0.5
budgets:
  agent_calls: 4
  "agent_calls": 8
temperature: 0.5
"""
REPLICAS = """\
executor: {executor: 1}
executor: {executor: 2}
"""


@pytest.mark.parametrize(
    ("text", "model", "problems"),
    [
        (
            RUN,
            RunConfig,
            [
                ("stages.0.steps", "is given on line 5 and again on line 6: remove one"),
                ("optimization.clip_low", "is given on line 8 and again on line 8: remove one"),
                ("steps", "is given on line 2 and again on line 9: remove one"),
            ],
        ),
        (
            SERVING,
            ServingConfig,
            [
                ("budgets.agent_calls", "is given on line 3 and again on line 4: remove one"),
                ("temperature", "is given on line 1 and again on line 5: remove one"),
            ],
        ),
        (REPLICAS, ReplicaPlan, [("executor", "is given on line 1 and again on line 2: remove one")]),
    ],
    ids=["run", "serving", "replicas"],
)
def test_keys_that_are_given_twice_are_refused_by_name_and_lines_at_every_depth(
    text: str, model: type[Section], problems: list[tuple[str, str]]
) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config(text, model)
    assert refused.value.problems == problems


def test_a_config_with_a_key_twice_is_not_described_either() -> None:
    with pytest.raises(ConfigError, match="steps: is given on line 2 and again on line 9"):
        describe_config(RUN)


def test_anchors_and_merges_work_and_what_a_mapping_has_itself_counts() -> None:
    config = parse_run_config(
        """\
dataset: {train: a.jsonl}
steps: 3
stages:
  - &first {train: executor, steps: 1, learning_rate: 1.0e-4}
  - &second {<<: *first, train: designer}
  - {<<: [*second, {warmup_steps: 7}], steps: 2}
  - *first
"""
    )
    assert [(stage.train, stage.steps, stage.learning_rate, stage.warmup_steps) for stage in config.stages] == [
        ("executor", 1, 1e-4, None),
        ("designer", 1, 1e-4, None),
        ("designer", 2, 1e-4, 7),
        ("executor", 1, 1e-4, None),
    ]


def test_a_key_that_is_twice_behind_an_anchor_is_told_once() -> None:
    text = "sampling:\n  designer: &role {max_tokens: 1, max_tokens: 2}\n  executor: *role\n"
    with pytest.raises(ConfigError) as refused:
        parse_config(text, ServingConfig)
    assert [key for key, _ in refused.value.problems] == ["sampling.designer.max_tokens"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &a [*a]", "line 1 holds itself"),
        ("a: &a\n  b: {<<: *a}", "line 1 holds itself"),
        (f"- &0 [{'x,' * 10}]\n" + "".join(f"- &{n + 1} [{f'*{n},' * 10}]\n" for n in range(60)), "aliases"),
        ("- &0 {a: 1}\n" + "".join(f"- &{n + 1} {{<<: [{f'*{n},' * 10}]}}\n" for n in range(60)), "aliases"),
    ],
)
def test_aliases_that_never_end_or_stand_for_too_much_are_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_run_config(text)


@settings(deadline=None, max_examples=50)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    )
)
def test_yaml_without_repetition_is_read_as_pyyaml_reads_it(value: object) -> None:
    text = yaml.safe_dump(value)
    assert load_yaml(text) == yaml.safe_load(text)
