"""The clipped policy gradient of PPO and GRPO (Schulman et al. 2017, eq. 7), with separate lower and upper clip.

    ratio_t = exp(log_prob_t - old_log_prob_t)
    loss    = - sum_t  weight_t c_t  min(ratio_t A_t, clip(ratio_t, 1 - low, 1 + high) A_t)

`c_t = min(exp(old_log_prob_t - behaviour_log_prob_t), importance_cap)` corrects for sampling with another implementation
of the same weights (truncated importance sampling); it is 1 where the cap is 0. It carries no gradient.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LossInputs:
    """Per-token values, each of shape [N]; only `log_probs` carries a gradient."""

    log_probs: Tensor
    old_log_probs: Tensor
    behaviour_log_probs: Tensor
    advantages: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Clip:
    """How far a ratio may move: it is kept within [1 - low, 1 + high]. `importance_cap` 0 is off."""

    low: float
    high: float
    importance_cap: float = 0.0


@dataclass(frozen=True)
class LossOutputs:
    """`loss` is the sum to minimise. The rest is per token, shape [N], detached."""

    loss: Tensor
    token_losses: Tensor
    ratios: Tensor
    clipped: Tensor
    importance: Tensor


def clipped_policy_gradient(inputs: LossInputs, clip: Clip) -> LossOutputs:
    """The loss and what it was made of. `clipped` is 1 where the clip removed the token's gradient."""
    ratios = torch.exp(inputs.log_probs - inputs.old_log_probs)
    bounded = ratios.clamp(1 - clip.low, 1 + clip.high)
    free = ratios * inputs.advantages
    held = bounded * inputs.advantages
    importance = torch.ones_like(inputs.weights)
    if clip.importance_cap > 0:
        gap = inputs.old_log_probs - inputs.behaviour_log_probs
        importance = torch.exp(gap).clamp(max=clip.importance_cap).detach()
    token_losses = -inputs.weights * importance * torch.minimum(free, held)
    return LossOutputs(
        loss=token_losses.sum(),
        token_losses=token_losses.detach(),
        ratios=ratios.detach(),
        clipped=(held < free).detach().to(ratios.dtype),
        importance=importance,
    )
