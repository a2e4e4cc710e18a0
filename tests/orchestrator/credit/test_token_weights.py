"""Per-token weights sum to what each rule says, per role, over the sequences of one optimizer step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from troupe_orchestrator.credit.normalization import (
    Normalization,
    RoleNormalization,
    TrainedSequence,
    token_weights,
)


@st.composite
def batches(draw: st.DrawFn) -> list[TrainedSequence]:
    sequences = [
        TrainedSequence(f"e{sample}s{number}", f"e{sample}", "executor", draw(st.integers(1, 50)))
        for sample in range(draw(st.integers(1, 5)))
        for number in range(draw(st.integers(1, 3)))
    ]
    sequences.extend(
        TrainedSequence(f"d{sample}", f"d{sample}", "designer", draw(st.integers(1, 50)))
        for sample in range(draw(st.integers(0, 3)))
    )
    return sequences


@pytest.mark.parametrize("rule", ["token_mean", "sequence_mean", "execution_mean"])
@given(batches(), st.floats(0.1, 4))
def test_the_weights_of_a_role_sum_to_its_scale(rule: str, batch: list[TrainedSequence], scale: float) -> None:
    normalization = Normalization.model_validate(
        {"executor": {"rule": rule, "scale": scale}, "designer": {"rule": rule}}
    )
    weights = token_weights(batch, normalization)
    for role, total in (("executor", scale), ("designer", 1.0)):
        own = [one for one in batch if one.role == role]
        if own:
            assert sum(weights[one.sequence_id] * one.trained_tokens for one in own) == pytest.approx(total)


@given(batches())
def test_with_a_constant_every_token_counts_the_same_whatever_else_is_in_the_batch(
    batch: list[TrainedSequence],
) -> None:
    rule = RoleNormalization(rule="constant", constant=256)
    weights = token_weights(batch, Normalization(designer=rule, executor=rule))
    assert set(weights.values()) == {1 / 256}


@given(batches())
def test_every_execution_counts_once_however_many_sequences_it_has(batch: list[TrainedSequence]) -> None:
    weights = token_weights(batch, Normalization(executor=RoleNormalization(rule="execution_mean")))
    shares: dict[str, float] = {}
    for one in batch:
        if one.role == "executor":
            shares[one.sample_id] = shares.get(one.sample_id, 0.0) + weights[one.sequence_id] * one.trained_tokens
    assert list(shares.values()) == pytest.approx([1 / len(shares)] * len(shares))


def test_a_copy_of_a_sequence_and_one_without_tokens_are_refused() -> None:
    one = TrainedSequence("s", "e", "executor", 3)
    with pytest.raises(ValueError, match="trained on twice"):
        token_weights([one, one], Normalization())
    with pytest.raises(ValueError, match="no trained token"):
        token_weights([TrainedSequence("s", "e", "executor", 0)], Normalization())


@pytest.mark.parametrize("values", [{"rule": "constant"}, {"constant": 5}, {"rule": "mean"}, {"scale": 0}, {"norm": 1}])
def test_an_option_that_would_go_unread_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RoleNormalization.model_validate(values)
