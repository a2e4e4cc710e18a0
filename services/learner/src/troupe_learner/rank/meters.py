"""Metrics of a step: sums and maxima over trained tokens, reduced over ranks at the end."""

from typing import Final

import torch
from torch import Tensor
from torch import distributed as dist

from troupe_learner.losses.clipped_policy_gradient import LossInputs, LossOutputs

_SUMS = (
    "loss", "trained_tokens", "padded_tokens", "ratio", "clipped", "importance", "entropy", "policy_kl",
    "mismatch_tokens", "mismatch_mean_abs", "mismatch_kl",
)  # fmt: skip
# In the order in which one makes the next not finite.
QUANTITIES: Final = ("log-probability", "ratio", "loss")
_NONE: Final = 2**62
_MAXIMA = ("ratio_max", "mismatch_max_abs", "mismatch_ratio_max")


class Meters:
    """Collects on one rank."""

    def __init__(self) -> None:
        self._sums = dict.fromkeys(_SUMS, 0.0)
        self._maxima = dict.fromkeys(_MAXIMA, 0.0)
        self._norms: list[float] = []
        self._first_bad = _NONE

    def add_loss(
        self, inputs: LossInputs, outputs: LossOutputs, entropies: Tensor, padded_tokens: int, scale: float
    ) -> None:
        """One forward pass; `scale` is what its weights were multiplied with, left out of the loss as reported."""
        drift = inputs.log_probs.detach() - inputs.old_log_probs
        self._sums["loss"] += float(outputs.loss.detach()) / scale
        self._sums["trained_tokens"] += len(drift)
        self._sums["padded_tokens"] += padded_tokens
        self._sums["ratio"] += float(outputs.ratios.sum())
        self._sums["clipped"] += float(outputs.clipped.sum())
        self._sums["importance"] += float(outputs.importance.sum())
        self._sums["entropy"] += float(entropies.sum())
        self._sums["policy_kl"] += float(k3(drift).sum())
        self._maxima["ratio_max"] = max(self._maxima["ratio_max"], float(outputs.ratios.max()))

    def add_mismatch(self, learner: Tensor, behaviour: Tensor) -> None:
        """Learner against engine, before any update: the same weights in two implementations."""
        gap = learner - behaviour
        self._sums["mismatch_tokens"] += len(gap)
        self._sums["mismatch_mean_abs"] += float(gap.abs().sum())
        self._sums["mismatch_kl"] += float(k3(gap).sum())
        worst = float(gap.abs().max())
        self._maxima["mismatch_max_abs"] = max(self._maxima["mismatch_max_abs"], worst)
        self._maxima["mismatch_ratio_max"] = max(self._maxima["mismatch_ratio_max"], float(gap.max().exp()))

    def note_bad(self, inputs: LossInputs, outputs: LossOutputs, owners: Tensor) -> None:
        """Remembers the first sequence with a value that is not finite; `owners` are indices into the batch."""
        values = (inputs.log_probs.detach(), outputs.ratios, outputs.token_losses)
        for place, each in enumerate(values):
            bad = owners[~torch.isfinite(each)]
            if len(bad):
                self._first_bad = min(self._first_bad, int(bad.min()) * len(QUANTITIES) + place)

    def first_bad(self, ranks: int) -> tuple[int, str] | None:
        """Of all ranks: index of the sequence, and the first of its `QUANTITIES` that is not finite. A collective."""
        first = torch.tensor(self._first_bad)
        if ranks > 1:
            dist.all_reduce(first, op=dist.ReduceOp.MIN)
        if int(first) == _NONE:
            return None
        sequence, place = divmod(int(first), len(QUANTITIES))
        return sequence, QUANTITIES[place]

    def add_norm(self, norm: float) -> None:
        """Norm of the gradient summed over ranks, before clipping; the same on every rank."""
        self._norms.append(norm)

    def reduced(self, ranks: int) -> dict[str, float]:
        """Means over trained tokens, sums and maxima, over all ranks. A collective."""
        sums = torch.tensor([self._sums[name] for name in _SUMS], dtype=torch.float64)
        maxima = torch.tensor([self._maxima[name] for name in _MAXIMA], dtype=torch.float64)
        if ranks > 1:
            dist.all_reduce(sums)
            dist.all_reduce(maxima, op=dist.ReduceOp.MAX)
        total = dict(zip(_SUMS, sums.tolist(), strict=True))
        tokens = max(total["trained_tokens"], 1.0)
        measured = max(total["mismatch_tokens"], 1.0)
        metrics = {
            "loss": total["loss"],
            "trained_tokens": total["trained_tokens"],
            "padded_tokens": total["padded_tokens"],
            "ratio_mean": total["ratio"] / tokens,
            "clip_fraction": total["clipped"] / tokens,
            "importance_mean": total["importance"] / tokens,
            "entropy": total["entropy"] / tokens,
            "policy_kl": total["policy_kl"] / tokens,
            "mismatch_mean_abs": total["mismatch_mean_abs"] / measured,
            "mismatch_kl": total["mismatch_kl"] / measured,
            "grad_norm": sum(self._norms) / max(len(self._norms), 1),
            "grad_norm_max": max(self._norms, default=0.0),
        }
        return metrics | dict(zip(_MAXIMA, maxima.tolist(), strict=True))


def k3(log_ratio: Tensor) -> Tensor:
    """Per-token estimate of KL(sampler || other) from samples of the sampler (Schulman's k3): never negative.

    `log_ratio` is log(other / sampler) of the sampled tokens.
    """
    return torch.exp(log_ratio) - 1 - log_ratio
