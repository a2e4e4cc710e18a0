"""Plain torch: parameters in float32 on every rank, gradients summed by all-reduce. The oracle of the other engine.

With `served` bfloat16 the forward pass runs under autocast and exports are rounded; parameters stay float32.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from troupe_learner.rank.engine import (
    AdamW,
    Engine,
    checked_norm,
    copy_into,
    fresh_moments,
    named_moments,
    sum_over_ranks,
)
from troupe_learner.rank.model import trained_parameters
from troupe_learner.rank.scorer import TokenScorer, Wanted

# Gradients travel in flat pieces of this many values, so that an all-reduce never doubles the model.
_REDUCE_VALUES = 1 << 24


class TorchEngine(Engine):
    def __init__(self, scorer: TokenScorer, adamw: AdamW, served: torch.dtype, rank: int, ranks: int) -> None:
        super().__init__(rank, ranks)
        self._scorer = scorer
        self._served = served
        self._named = trained_parameters(scorer.model)
        self._parameters = list(self._named.values())
        self._optimizer = adamw.build(self._parameters)
        fresh_moments(self._optimizer, self._parameters)

    def forward(self, wanted: Wanted) -> tuple[Tensor, Tensor]:
        with self._autocast():
            scores: tuple[Tensor, Tensor] = self._scorer(wanted)
        return scores

    def begin(self, *, last: bool) -> None:
        """Nothing to prepare: gradients add up in the parameters until `apply`."""

    def backward(self, loss: Tensor) -> None:
        torch.autograd.backward(loss)

    def apply(self, learning_rate: float, max_grad_norm: float) -> float:
        gradients = self._summed_gradients()
        norm = get_total_norm(gradients)
        try:
            size = checked_norm(float(norm))
            if max_grad_norm > 0:
                clip_grads_with_norm_(self._parameters, max_grad_norm, norm)
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate
            self._optimizer.step()
        finally:
            self._optimizer.zero_grad(set_to_none=True)
        return size

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self._named.items():
            yield name, parameter.detach().to(self._served)

    def overwrite(self, weights: Mapping[str, Tensor]) -> None:
        copy_into(self._masters(), weights)

    def state(self) -> dict[str, Tensor]:
        masters = {} if self._served == torch.float32 else self._masters()
        return {**masters, **self.moments()}

    def replicated(self) -> dict[str, Tensor]:
        return self._masters() if self._served == torch.float32 else {}

    def moments(self) -> dict[str, Tensor]:
        return named_moments(self._optimizer, self._parameters)

    def _masters(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self._named.items()}

    def _autocast(self) -> AbstractContextManager[object]:
        if self._served == torch.float32:
            return nullcontext()
        return torch.autocast("cpu", dtype=self._served)

    def _summed_gradients(self) -> list[Tensor]:
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        if self.ranks == 1:
            return gradients
        piece: list[Tensor] = []
        for index, gradient in enumerate(gradients):
            piece.append(gradient)
            if sum(each.numel() for each in piece) >= _REDUCE_VALUES or index == len(gradients) - 1:
                flat = sum_over_ranks(torch.cat([each.reshape(-1) for each in piece]), self.ranks)
                for each, part in zip(piece, torch.split(flat, [each.numel() for each in piece]), strict=True):
                    each.copy_(part.view_as(each))
                piece = []
        return gradients
