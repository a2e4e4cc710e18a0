"""Rewards are a table of stored terms; format is read off recorded turns and cost falls on successful executions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from troupe_orchestrator.rewards import (
    ExecutionFacts,
    RewardConfig,
    delivery_share,
    reward,
    solution_share,
)

FACTS = st.builds(
    ExecutionFacts,
    success=st.booleans(),
    delivery_format=st.floats(0, 1),
    solution_format=st.sampled_from([0.0, 1.0]),
    agent_calls=st.integers(0, 50),
)


def test_every_term_is_stored_with_role_value_and_weight() -> None:
    breakdown = reward(RewardConfig(), ExecutionFacts(True, 0.5, 1.0, 4))
    terms = {(term.role, term.name): (term.value, term.weight) for term in breakdown.terms}
    assert terms == {
        ("executor", "success"): (1.0, 1.0),
        ("executor", "delivery_format"): (0.5, 0.1),
        ("executor", "solution_format"): (1.0, 0.1),
        ("designer", "success"): (1.0, 1.0),
        ("designer", "delivery_format"): (0.5, 0.0),
        ("designer", "solution_format"): (1.0, 0.0),
        ("designer", "cost"): (-3.0, 0.01),
    }
    assert breakdown.total("executor") == pytest.approx(1.15)
    assert breakdown.total("designer") == pytest.approx(0.97)


@given(FACTS, FACTS)
def test_a_failure_costs_nothing_so_the_cheapest_one_is_not_preferred(
    one: ExecutionFacts, other: ExecutionFacts
) -> None:
    config = RewardConfig()
    for facts in (one, other):
        if not facts.success:
            assert reward(config, facts).total("designer") == 0.0


@given(FACTS)
def test_format_may_be_paid_on_success_only(facts: ExecutionFacts) -> None:
    config = RewardConfig(format_requires_success=True)
    if not facts.success:
        assert reward(config, facts).total("executor") == 0.0


def test_format_is_read_off_recorded_turns_and_without_any_is_not_paid() -> None:
    assert delivery_share([]) == 0.0
    assert delivery_share(["<delivery>x</delivery>", "x", "<delivery></delivery>", "<delivery>"]) == 0.25
    assert solution_share(None, "math") == 0.0
    assert solution_share("I do not know", "math") == 0.0
    assert solution_share(r"<delivery>\boxed{4}</delivery>", "math") == 1.0
    assert solution_share(r"\boxed{4}", "code") == 0.0
    assert solution_share("<solution>print(1)</solution>", "code") == 1.0


@pytest.mark.parametrize(
    "values", [{"judge": {}}, {"executor": {"cost": 1}}, {"designer": {"sucess": 1}}, {"executor": {"success": -1}}]
)
def test_an_unknown_term_or_a_negative_weight_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RewardConfig.model_validate(values)
