"""What a training engine does for the step, and nothing more.

An engine owns parameters and optimizer on this rank. Its contract, which the tests hold both engines to:

- gradients of all `backward` calls of all ranks are *summed*; nothing is averaged over micro-batches or ranks;
- `apply` either takes one AdamW step or raises `NonFiniteGradient` on every rank and changes nothing;
- `live` names every tensor that a step changes on this rank: what a snapshot copies back, bit for bit. `state` is the part
  of it that a checkpoint keeps beside the exported weights; `weights` is that export.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch import distributed as dist

from troupe_learner.rank.scorer import Wanted


@dataclass(frozen=True)
class AdamW:
    """Constants of the optimizer; the learning rate comes with each step."""

    beta1: float
    beta2: float
    eps: float
    weight_decay: float

    def build(self, parameters: list[nn.Parameter]) -> torch.optim.AdamW:
        return torch.optim.AdamW(
            parameters, lr=0.0, betas=(self.beta1, self.beta2), eps=self.eps, weight_decay=self.weight_decay
        )


class NonFiniteGradient(Exception):
    """The norm of the summed gradient is infinite or not a number."""

    def __init__(self, norm: float) -> None:
        super().__init__(f"the gradient's norm is {norm}")
        self.norm = norm


class Engine(ABC):
    """One rank's share of the model and its optimizer."""

    def __init__(self, rank: int, ranks: int) -> None:
        self.rank = rank
        self.ranks = ranks

    @abstractmethod
    def forward(self, wanted: Wanted) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies; a collective of all ranks under ZeRO-3."""

    @abstractmethod
    def begin(self, *, last: bool) -> None:
        """Precedes each training forward; `last` before the final one of an optimizer step."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of this loss, a sum over this rank's tokens."""

    @abstractmethod
    def apply(self, learning_rate: float, max_grad_norm: float) -> float:
        """One optimizer step on the summed gradients; returns their norm before clipping.

        Raises:
            NonFiniteGradient: on every rank alike; weights and moments are as before, gradients are dropped.
        """

    @abstractmethod
    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Each whole weight as it is served, on the CPU, in the model's order. A collective; only rank 0 may keep them."""

    @abstractmethod
    def overwrite(self, weights: Mapping[str, Tensor]) -> None:
        """Replaces every weight by a whole one, of the type that the model was loaded in, as if the engine had been built
        with them; moments stay. A collective.
        """

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Live tensors that, beside `replicated`, make up this rank's training state."""

    @abstractmethod
    def replicated(self) -> dict[str, Tensor]:
        """Live weights that every rank holds whole and that `weights` gives without loss of precision."""

    @abstractmethod
    def moments(self) -> dict[str, Tensor]:
        """Live optimizer state: part of `state`."""

    def live(self) -> dict[str, Tensor]:
        return {**self.state(), **self.replicated()}

    def reset_moments(self) -> None:
        """Forgets the optimizer's past: the next step is as if it were the first."""
        for tensor in self.moments().values():
            tensor.zero_()


def misfit(live: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> str | None:
    """Why stored tensors cannot replace live ones, if they cannot: a name, shape or type that differs."""
    if odd := sorted(live.keys() ^ stored.keys()):
        return f"{len(odd)} tensors are on one side only, the first is {odd[0]}"
    for name, tensor in live.items():
        other = stored[name]
        if tensor.shape != other.shape or tensor.dtype != other.dtype:
            ours, theirs = (f"{tuple(each.shape)} {each.dtype}" for each in (tensor, other))
            return f"{name} is {ours} here and {theirs} there"
    return None


@torch.no_grad()
def copy_into(live: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    """Overwrites live tensors in place; `misfit` says beforehand whether that is possible."""
    for name, tensor in live.items():
        tensor.copy_(stored[name])


def snapshot(engine: Engine) -> dict[str, Tensor]:
    """A copy of all that a step changes on this rank."""
    return {name: tensor.detach().clone() for name, tensor in engine.live().items()}


def fresh_moments(optimizer: torch.optim.Optimizer, updated: Sequence[Tensor]) -> None:
    """Creates AdamW's state ahead of its first step, with the values it would have then.

    Lazily created state would make a snapshot before the first step differ in names from one after it.
    """
    for tensor in updated:
        optimizer.state[tensor] = {
            "step": torch.tensor(0.0),
            "exp_avg": torch.zeros_like(tensor, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(tensor, memory_format=torch.preserve_format),
        }


def named_moments(optimizer: torch.optim.Optimizer, updated: Sequence[Tensor]) -> dict[str, Tensor]:
    """Live optimizer state by position in `updated`, the tensors that the optimizer updates."""
    return {
        f"moments.{index}.{key}": value
        for index, tensor in enumerate(updated)
        for key, value in sorted(optimizer.state[tensor].items())
    }


def sum_over_ranks(tensor: Tensor, ranks: int) -> Tensor:
    if ranks > 1:
        dist.all_reduce(tensor)
    return tensor


def checked_norm(norm: float) -> float:
    if not math.isfinite(norm):
        raise NonFiniteGradient(norm)
    return norm
