"""Checks how a turn is to be sampled.

For training the sampled distribution must be the one whose log-probabilities are reported: the full softmax
at temperature 1. Anything else is refused, never corrected.
"""

import math
from typing import Final

from troupe_contracts.errors import InvalidArgument

from troupe_inference.turns import TurnSampling

MAX_TEMPERATURE: Final = 100.0
# Below it a softmax in float32 is greedy with rounding noise.
MIN_TEMPERATURE: Final = 0.01
MAX_SEED: Final = 2**63 - 1


def check_sampling(sampling: TurnSampling, context_length: int) -> None:
    """Raises InvalidArgument for a setting that is out of bounds, or that is not for training where that is
    asked.
    """
    temperature = sampling.temperature
    if not math.isfinite(temperature) or not (temperature == 0 or MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE):
        raise InvalidArgument(
            "sampling.temperature",
            f"is {temperature:g}: send 0 (greedy) or a value from {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}",
        )
    if sampling.max_tokens > context_length:
        raise InvalidArgument(
            "sampling.max_tokens",
            f"is {sampling.max_tokens}, the context has {context_length}: send less, or 0 for what it leaves",
        )
    if sampling.seed is not None and sampling.seed > MAX_SEED:
        raise InvalidArgument("sampling.seed", f"is {sampling.seed}: send at most {MAX_SEED}")
    if sampling.top_p is not None and not 0 < sampling.top_p <= 1:
        raise InvalidArgument("sampling.top_p", f"is {sampling.top_p:g}: send a value in (0, 1], or leave it unset")
    if sampling.top_k is not None and sampling.top_k < 1:
        raise InvalidArgument("sampling.top_k", f"is {sampling.top_k}: send at least 1, or leave it unset")
    if sampling.training:
        _check_training(sampling)


def _check_training(sampling: TurnSampling) -> None:
    remedy = "tokens to be trained on are sampled at temperature 1 from the full distribution"
    if sampling.temperature != 1:
        raise InvalidArgument("sampling.temperature", f"is {sampling.temperature:g} with training set: {remedy}")
    if sampling.top_p is not None:
        raise InvalidArgument("sampling.top_p", f"is {sampling.top_p:g} with training set: {remedy}; leave it unset")
    if sampling.top_k is not None:
        raise InvalidArgument("sampling.top_k", f"is {sampling.top_k} with training set: {remedy}; leave it unset")
