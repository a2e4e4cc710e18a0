"""The clipped policy gradient against its formula, written out token by token."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from troupe_learner.losses.clipped_policy_gradient import Clip, LossInputs, clipped_policy_gradient

LOG_PROBS = st.floats(-5, -0.01)
TOKENS = st.lists(
    st.tuples(LOG_PROBS, LOG_PROBS, LOG_PROBS, st.floats(-3, 3), st.floats(0, 1)),
    min_size=1,
    max_size=20,
)


def inputs_of(tokens: list[tuple[float, ...]]) -> LossInputs:
    columns = [torch.tensor(column, dtype=torch.float64) for column in zip(*tokens, strict=True)]
    columns[0].requires_grad_()
    return LossInputs(*columns)


def naive(tokens: list[tuple[float, ...]], clip: Clip) -> float:
    total = 0.0
    for log_prob, old, behaviour, advantage, weight in tokens:
        ratio = math.exp(log_prob - old)
        bounded = min(max(ratio, 1 - clip.low), 1 + clip.high)
        correction = min(math.exp(old - behaviour), clip.importance_cap) if clip.importance_cap else 1.0
        total -= weight * correction * min(ratio * advantage, bounded * advantage)
    return total


@given(TOKENS, st.sampled_from([0.0, 0.5, 2.0]))
def test_the_loss_is_the_formula_summed_over_tokens(tokens: list[tuple[float, ...]], cap: float) -> None:
    clip = Clip(0.2, 0.28, cap)
    outputs = clipped_policy_gradient(inputs_of(tokens), clip)
    assert float(outputs.loss.detach()) == pytest.approx(naive(tokens, clip), rel=1e-9, abs=1e-9)
    assert float(outputs.token_losses.sum()) == pytest.approx(float(outputs.loss.detach()))


@given(TOKENS)
def test_a_clipped_token_has_no_gradient_and_every_other_has_the_policy_gradient(
    tokens: list[tuple[float, ...]],
) -> None:
    inputs = inputs_of(tokens)
    outputs = clipped_policy_gradient(inputs, Clip(0.2, 0.28))
    outputs.loss.backward()
    gradient = inputs.log_probs.grad
    assert gradient is not None
    free = -inputs.weights * outputs.ratios * inputs.advantages
    expected = torch.where(outputs.clipped > 0, torch.zeros_like(free), free)
    assert torch.allclose(gradient, expected, atol=1e-9)


def test_tokens_without_weight_contribute_nothing_whatever_their_advantage() -> None:
    inputs = inputs_of([(-1.0, -2.0, -2.0, 100.0, 0.0)])
    outputs = clipped_policy_gradient(inputs, Clip(0.2, 0.28))
    outputs.loss.backward()
    assert float(outputs.loss.detach()) == 0
    assert inputs.log_probs.grad is not None
    assert float(inputs.log_probs.grad.abs().sum()) == 0


def test_the_importance_correction_is_cut_at_its_cap_and_carries_no_gradient() -> None:
    inputs = inputs_of([(-1.0, -1.0, -3.0, 1.0, 1.0)])
    outputs = clipped_policy_gradient(inputs, Clip(0.2, 0.28, importance_cap=2.0))
    outputs.loss.backward()
    assert float(outputs.importance[0]) == 2.0
    assert inputs.log_probs.grad is not None
    assert float(inputs.log_probs.grad[0]) == -2.0
