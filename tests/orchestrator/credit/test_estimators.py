"""Estimators compare samples within groups of ids. Property tests on random batches, enumeration on a small bandit."""

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from troupe_contracts.plugins import UnknownPluginError
from troupe_orchestrator.credit.config import CreditConfig, estimate
from troupe_orchestrator.credit.registry import ESTIMATORS
from troupe_orchestrator.credit.types import (
    Advantages,
    DesignOutcome,
    ExecutionOutcome,
    OutcomeError,
    Outcomes,
    TurnOutcome,
    Values,
)

REWARD = st.integers(-20, 20).map(lambda tenths: tenths / 10)
BY_GROUPS = [
    CreditConfig(),
    CreditConfig(options={"group": "design"}),
    CreditConfig(options={"std": "population", "epsilon": 0.1}),
    CreditConfig(options={"std": "none"}),
    CreditConfig(estimator="leave_one_out"),
    CreditConfig(estimator="leave_one_out", options={"group": "design"}),
    CreditConfig(estimator="agent_turn"),
    CreditConfig(estimator="agent_turn", options={"group": "task"}),
]


@st.composite
def batches(draw: st.DrawFn) -> Outcomes:
    """Tasks of 1 to 4 designs, some invalid, of 1 to 4 executions, of 1 to 3 turns."""
    designs: list[DesignOutcome] = []
    executions: list[ExecutionOutcome] = []
    turns: list[TurnOutcome] = []
    for task in range(draw(st.integers(1, 3))):
        for design in range(draw(st.integers(1, 4))):
            design_id = f"t{task}d{design}"
            valid = draw(st.booleans())
            designs.append(DesignOutcome(design_id, f"t{task}", valid))
            for execution in range(draw(st.integers(1, 4)) if valid else 0):
                execution_id = f"{design_id}e{execution}"
                executions.append(ExecutionOutcome(execution_id, design_id, f"t{task}", draw(REWARD), draw(REWARD)))
                turns.extend(
                    TurnOutcome(execution_id, f"{execution_id}c", "solver", turn)
                    for turn in range(draw(st.integers(1, 3)))
                )
    return Outcomes(tuple(designs), tuple(executions), tuple(turns))


def same(one: Advantages, other: Advantages) -> bool:
    return (
        one.designer == pytest.approx(other.designer)
        and one.executor == pytest.approx(other.executor)
        and one.turns == pytest.approx(other.turns)
    )


@pytest.mark.parametrize("config", BY_GROUPS)
@given(batches(), st.integers(0, 1000))
def test_the_order_of_a_batch_changes_nothing(config: CreditConfig, batch: Outcomes, seed: int) -> None:
    shuffler = random.Random(seed)
    shuffled = Outcomes(
        tuple(shuffler.sample(batch.designs, len(batch.designs))),
        tuple(shuffler.sample(batch.executions, len(batch.executions))),
        tuple(shuffler.sample(batch.turns, len(batch.turns))),
    )
    assert same(estimate(config, batch), estimate(config, shuffled))


@pytest.mark.parametrize("config", BY_GROUPS)
@given(batches(), REWARD)
def test_a_shift_of_all_rewards_of_the_executor_changes_nothing(
    config: CreditConfig, batch: Outcomes, shift: float
) -> None:
    moved = tuple(replace(one, reward_executor=one.reward_executor + shift) for one in batch.executions)
    shifted = estimate(config, replace(batch, executions=moved))
    plain = estimate(config, batch)
    assert same(replace(plain, designer={}), replace(shifted, designer={}))


@pytest.mark.parametrize("config", BY_GROUPS)
@given(batches(), REWARD)
def test_a_shift_of_all_rewards_of_the_designer_changes_nothing_where_all_designs_are_valid(
    config: CreditConfig, batch: Outcomes, shift: float
) -> None:
    designs = tuple(design for design in batch.designs if design.valid)
    batch = replace(batch, designs=designs)
    moved = tuple(replace(one, reward_designer=one.reward_designer + shift) for one in batch.executions)
    assert same(estimate(config, batch), estimate(config, replace(batch, executions=moved)))


@pytest.mark.parametrize("config", BY_GROUPS)
@given(batches())
def test_a_dropped_task_changes_no_advantage_of_another(config: CreditConfig, batch: Outcomes) -> None:
    kept = {execution.execution_id for execution in batch.executions if execution.task_id != "t0"}
    rest = Outcomes(
        tuple(design for design in batch.designs if design.task_id != "t0"),
        tuple(execution for execution in batch.executions if execution.task_id != "t0"),
        tuple(turn for turn in batch.turns if turn.execution_id in kept),
    )
    if config.estimator == "agent_turn" and not rest.turns:
        rest = replace(rest, executions=())
    whole, part = estimate(config, batch), estimate(config, rest)
    assert all(whole.designer[key] == value for key, value in part.designer.items())
    assert all(whole.executor[key] == value for key, value in part.executor.items())
    assert all(whole.turns[key] == value for key, value in part.turns.items())


@given(batches())
def test_advantages_of_a_group_sum_to_zero(batch: Outcomes) -> None:
    advantages = estimate(CreditConfig(), batch)
    for group in advantages.groups:
        by_id = advantages.designer if group.role == "designer" else advantages.executor
        assert abs(sum(by_id[member] for member in group.members)) < 1e-6


def example() -> Outcomes:
    """One task, three designs of which one is invalid, two executions each."""
    rewards = {"a": (1.0, 0.0), "b": (1.0, 1.0)}
    return Outcomes(
        (DesignOutcome("a", "t"), DesignOutcome("b", "t"), DesignOutcome("c", "t", valid=False)),
        tuple(
            ExecutionOutcome(f"{design}{index}", design, "t", reward, reward)
            for design, own in rewards.items()
            for index, reward in enumerate(own)
        ),
    )


def test_an_invalid_design_has_reward_0_within_the_designers_group() -> None:
    advantages = estimate(CreditConfig(options={"std": "none"}), example())
    assert advantages.designer == {"a": 0.0, "b": 0.5, "c": -0.5}
    assert advantages.executor == {"a0": 0.25, "a1": -0.75, "b0": 0.25, "b1": 0.25}


def test_the_std_form_is_difference_over_std_plus_epsilon() -> None:
    advantages = estimate(CreditConfig(options={"epsilon": 0.1}), example())
    assert advantages.designer["b"] == pytest.approx(0.5 / (0.5 + 0.1))
    population = estimate(CreditConfig(options={"std": "population", "epsilon": 0.0}), example())
    assert population.designer["b"] == pytest.approx(0.5 / math.sqrt(0.5 / 3))


def test_executions_may_be_compared_within_their_design() -> None:
    advantages = estimate(CreditConfig(options={"group": "design", "std": "none"}), example())
    assert advantages.executor == {"a0": 0.5, "a1": -0.5, "b0": 0.0, "b1": 0.0}
    assert [group.key for group in advantages.zero_variance_groups] == [("t", "b")]
    assert advantages.has_signal("executor", "a0")
    assert not advantages.has_signal("executor", "b0")
    assert advantages.has_signal("designer", "c")


def test_leave_one_out_compares_with_the_mean_of_the_others() -> None:
    advantages = estimate(CreditConfig(estimator="leave_one_out"), example())
    assert advantages.designer == pytest.approx({"a": 0.0, "b": 0.75, "c": -0.75})
    assert advantages.executor["a1"] == pytest.approx(-1.0)


def test_a_sample_that_is_alone_has_no_advantage() -> None:
    alone = Outcomes((DesignOutcome("a", "t"),), (ExecutionOutcome("a0", "a", "t", 1.0, 1.0),))
    for config in (CreditConfig(), CreditConfig(estimator="leave_one_out")):
        advantages = estimate(config, alone)
        assert (advantages.designer["a"], advantages.executor["a0"]) == (0.0, 0.0)
        assert len(advantages.zero_variance_groups) == 2


def test_value_baseline_subtracts_the_given_values() -> None:
    config = CreditConfig(estimator="value_baseline")
    advantages = estimate(config, example(), Values({"t": 0.25}, {"t": 0.5}))
    assert advantages.designer == {"a": 0.25, "b": 0.75, "c": -0.25}
    assert advantages.executor == {"a0": 0.5, "a1": -0.5, "b0": 0.5, "b1": 0.5}
    with pytest.raises(OutcomeError, match="no executor value for task t"):
        estimate(config, example(), Values({"t": 0.25}, {}))
    with pytest.raises(OutcomeError, match="needs the values"):
        estimate(config, example())


def test_agent_turn_counts_an_execution_once_however_many_turns_it_has() -> None:
    turns = (
        TurnOutcome("a0", "a0c", "solver", 0),
        TurnOutcome("a0", "a0again", "solver", 0),
        TurnOutcome("a0", "a0c", "solver", 1),
        TurnOutcome("a1", "a1c", "solver", 0),
        TurnOutcome("b0", "b0c", "critic", 0),
        TurnOutcome("b1", "b1c", "solver", 0),
    )
    config = CreditConfig(estimator="agent_turn", options={"group": "task", "std": "none"})
    advantages = estimate(config, replace(example(), turns=turns))
    assert advantages.turns == pytest.approx(
        {
            ("a0c", 0): 1 / 3,
            ("a0again", 0): 1 / 3,
            ("a0c", 1): 0.0,
            ("a1c", 0): -2 / 3,
            ("b0c", 0): 0.0,
            ("b1c", 0): 1 / 3,
        }
    )


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: Outcomes((DesignOutcome("a", "t"), DesignOutcome("a", "t")), ()), "two designs"),
        (lambda: Outcomes((DesignOutcome("a", "t"),), ()), "no execution"),
        (lambda: Outcomes((), (ExecutionOutcome("e", "a", "t", 0, 0),)), "not among the valid designs"),
        (
            lambda: Outcomes((DesignOutcome("a", "t", False),), (ExecutionOutcome("e", "a", "t", 0, 0),)),
            "not among the valid designs",
        ),
        (lambda: replace(example(), executions=example().executions * 2), "two executions"),
        (lambda: replace(example(), turns=(TurnOutcome("z", "c", "s", 0),)), "unknown execution"),
    ],
)
def test_outcomes_that_contradict_each_other_are_refused(make: Callable[[], Outcomes], problem: str) -> None:
    with pytest.raises(OutcomeError, match=problem):
        make()


def test_an_unknown_estimator_or_option_is_refused_by_name() -> None:
    with pytest.raises(UnknownPluginError, match="known: agent_turn, hierarchical, leave_one_out, value_baseline"):
        ESTIMATORS.find("grpo")
    with pytest.raises(ValidationError, match="no estimator is named 'grpo'"):
        CreditConfig(estimator="grpo")
    with pytest.raises(ValidationError, match="epsilonn"):
        CreditConfig(options={"epsilonn": 1.0})


# A bandit small enough to enumerate: the designer picks one of three designs (the last is invalid), the executor one of
# two answers. Softmax policies; `SUCCESS[design][answer]` is the reward.
DESIGN_LOGITS = (0.3, -0.2, 0.1)
ANSWER_LOGITS = ((0.5, -0.5), (-0.1, 0.4))
SUCCESS = ((1.0, 0.2), (0.0, 0.7))
M, N = 2, 2


def softmax(logits: tuple[float, ...]) -> list[float]:
    weights = [math.exp(logit) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def score(logits: tuple[float, ...], chosen: int) -> list[float]:
    """Gradient of log π(chosen) in the logits."""
    return [(index == chosen) - probability for index, probability in enumerate(softmax(logits))]


def expected_gradient(config: CreditConfig, values: Values | None = None) -> tuple[list[float], list[float]]:
    """Expectation, over all batches, of the designer's estimator 1/M Σ A ∇log π and the executor's 1/(MN) Σ A ∇log π."""
    designer, executor = [0.0] * 3, [0.0] * 4
    design_probability = softmax(DESIGN_LOGITS)
    answer_probability = [softmax(logits) for logits in ANSWER_LOGITS]
    for designs in itertools.product(range(3), repeat=M):
        valid = [index for index, design in enumerate(designs) if design < 2]
        for answers in itertools.product(range(2), repeat=N * len(valid)):
            chosen = {
                f"{index}.{number}": (index, answers[place * N + number])
                for place, index in enumerate(valid)
                for number in range(N)
            }
            probability = math.prod(design_probability[design] for design in designs) * math.prod(
                answer_probability[designs[index]][answer] for index, answer in chosen.values()
            )
            outcomes = Outcomes(
                tuple(DesignOutcome(str(index), "t", design < 2) for index, design in enumerate(designs)),
                tuple(
                    ExecutionOutcome(name, str(index), "t", *(SUCCESS[designs[index]][answer],) * 2)
                    for name, (index, answer) in chosen.items()
                ),
            )
            advantages = estimate(config, outcomes, values)
            for index, design in enumerate(designs):
                for place, part in enumerate(score(DESIGN_LOGITS, design)):
                    designer[place] += probability * advantages.designer[str(index)] * part / M
            for name, (index, answer) in chosen.items():
                for place, part in enumerate(score(ANSWER_LOGITS[designs[index]], answer)):
                    executor[designs[index] * 2 + place] += probability * advantages.executor[name] * part / (M * N)
    return designer, executor


def true_gradient() -> tuple[list[float], list[float]]:
    """Gradient of the expected reward in the logits of both policies, written out."""
    design_probability = softmax(DESIGN_LOGITS)
    answer_probability = [softmax(logits) for logits in ANSWER_LOGITS]
    values = [sum(p * r for p, r in zip(answer_probability[d], SUCCESS[d], strict=True)) for d in range(2)] + [0.0]
    mean = sum(p * value for p, value in zip(design_probability, values, strict=True))
    designer = [p * (value - mean) for p, value in zip(design_probability, values, strict=True)]
    executor = [
        design_probability[d] * answer_probability[d][a] * (SUCCESS[d][a] - values[d])
        for d in range(2)
        for a in range(2)
    ]
    return designer, executor


@pytest.mark.parametrize("group", ["task", "design"])
def test_leave_one_out_is_unbiased_for_both_roles_although_they_share_rollouts(group: str) -> None:
    config = CreditConfig(estimator="leave_one_out", options={"group": group})
    for estimated, true in zip(expected_gradient(config), true_gradient(), strict=True):
        assert estimated == pytest.approx(true, abs=1e-12)


def test_a_value_baseline_is_unbiased_whatever_the_value() -> None:
    config = CreditConfig(estimator="value_baseline")
    estimated = expected_gradient(config, Values({"t": 0.4}, {"t": -3.0}))
    for one, true in zip(estimated, true_gradient(), strict=True):
        assert one == pytest.approx(true, abs=1e-12)


def test_without_std_the_group_mean_only_shrinks_the_gradient() -> None:
    designer, executor = expected_gradient(CreditConfig(options={"group": "design", "std": "none"}))
    true_designer, true_executor = true_gradient()
    assert designer == pytest.approx([part * (M - 1) / M for part in true_designer], abs=1e-12)
    assert executor == pytest.approx([part * (N - 1) / N for part in true_executor], abs=1e-12)


def test_division_by_the_std_changes_the_direction_of_the_gradient() -> None:
    designer, _ = expected_gradient(CreditConfig())
    true_designer, _ = true_gradient()
    ratios = [one / true for one, true in zip(designer, true_designer, strict=True)]
    assert max(ratios) / min(ratios) > 1.05
