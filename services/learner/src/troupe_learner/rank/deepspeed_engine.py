"""DeepSpeed: ZeRO stages 0 to 3 around torch's own AdamW, on the CPU over gloo.

What is bent to the contract of `Engine`:
- DeepSpeed averages gradients over ranks: each loss is multiplied by their number. Micro-batches are counted by us
  (`set_gradient_accumulation_boundary`), so nothing is divided by a number of accumulation steps.
- ZeRO skips the step by itself when the gradient's norm is not finite; stage 0 does not, so there it is checked before.
- The clip bound comes with each step, DeepSpeed reads it from its optimizer (stage 0: from the parameters, here).
- Checkpoints are ours: DeepSpeed's partitions are read and written in place as named tensors, bit for bit, instead of its
  pickled files. They fit the same number of ranks and the same stage only.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import deepspeed
import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from troupe_learner.rank.engine import (
    AdamW,
    Engine,
    NonFiniteGradient,
    checked_norm,
    copy_into,
    fresh_moments,
    named_moments,
)
from troupe_learner.rank.model import trained_parameters
from troupe_learner.rank.scorer import TokenScorer, Wanted

# Gloo reduces and AdamW is torch's, so none of its own operators is used. Without this it looks for compilers at each start,
# and compiles one with what it finds, which an image does not have.
deepspeed.ops.__compatible_ops__ = {}

# Weights gathered at a time under ZeRO-3, in values.
_GATHER_VALUES = 1 << 26


def configuration(zero_stage: int, served: torch.dtype, ranks: int) -> dict[str, Any]:
    """The DeepSpeed config; everything that it would schedule by itself is off."""
    zero: dict[str, Any] = {"stage": zero_stage, "overlap_comm": False}
    if zero_stage == 3:
        # 0: no parameter stays gathered between passes, so that the partitions are all there is to restore.
        zero["stage3_param_persistence_threshold"] = 0
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": ranks,
        "zero_optimization": zero,
        "steps_per_print": 2**62,
    }
    if served == torch.bfloat16:
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
    return config


class DeepSpeedEngine(Engine):
    def __init__(
        self,
        scorer: TokenScorer,
        adamw: AdamW,
        served: torch.dtype,
        zero_stage: int,
        rank: int,
        ranks: int,
    ) -> None:
        super().__init__(rank, ranks)
        self._stage = zero_stage
        self._named = trained_parameters(scorer.model)
        self._parameters = list(self._named.values())
        engine, optimizer, _, _ = deepspeed.initialize(
            model=scorer,
            optimizer=adamw.build(self._parameters),
            config=configuration(zero_stage, served, ranks),
        )
        self._engine = engine
        self._zero = optimizer if zero_stage else None
        self._adamw: torch.optim.Optimizer = optimizer.optimizer if zero_stage else optimizer
        self._updated = self._updated_tensors()
        fresh_moments(self._adamw, self._updated)

    def forward(self, wanted: Wanted) -> tuple[Tensor, Tensor]:
        scores: tuple[Tensor, Tensor] = self._engine(wanted)
        return scores

    def begin(self, *, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss * self.ranks)

    def apply(self, learning_rate: float, max_grad_norm: float) -> float:
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        if self._zero is None:
            return self._apply_unpartitioned(max_grad_norm)
        self._zero.clip_grad = max_grad_norm
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm())
        if self._zero.overflow:
            raise NonFiniteGradient(norm)
        return norm

    def _apply_unpartitioned(self, max_grad_norm: float) -> float:
        """Stage 0: gradients are whole and already reduced on every rank."""
        gradients = [each.grad for each in self._parameters if each.grad is not None]
        norm = get_total_norm(gradients)
        try:
            size = checked_norm(float(norm))
        except NonFiniteGradient:
            self._engine.zero_grad()
            raise
        if max_grad_norm > 0:
            clip_grads_with_norm_(self._parameters, max_grad_norm, norm)
        self._engine.step()
        return size

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        if self._stage < 3:
            for name, parameter in self._named.items():
                yield name, parameter.detach()
            return
        bucket: list[str] = []
        names = list(self._named)
        for index, name in enumerate(names):
            bucket.append(name)
            size = sum(_whole_size(self._named[each]) for each in bucket)
            if size >= _GATHER_VALUES or index == len(names) - 1:
                with deepspeed.zero.GatheredParameters([self._named[each] for each in bucket]):
                    gathered = [(each, self._named[each].detach().clone()) for each in bucket]
                yield from gathered
                bucket = []

    def overwrite(self, weights: Mapping[str, Tensor]) -> None:
        if self._stage == 3:
            for name, parameter in self._named.items():
                with torch.no_grad(), deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                    parameter.copy_(weights[name])
        else:
            copy_into(self.replicated(), weights)
        if self._zero is not None:
            self._zero.refresh_fp32_params()

    def state(self) -> dict[str, Tensor]:
        return {**self._masters(), **self._partitions(), **self.moments()}

    def replicated(self) -> dict[str, Tensor]:
        if self._stage == 3:
            return {}
        return {name: parameter.detach() for name, parameter in self._named.items()}

    def moments(self) -> dict[str, Tensor]:
        return named_moments(self._adamw, self._updated)

    def _updated_tensors(self) -> list[Tensor]:
        """What AdamW updates. Read from DeepSpeed: at stage 3 it empties the optimizer's own groups between steps."""
        if self._zero is None:
            return list(self._parameters)
        if self._stage == 3:
            return list(self._zero.fp32_partitioned_groups_flat)
        return list(self._zero.single_partition_of_fp32_groups)

    def _masters(self) -> dict[str, Tensor]:
        """This rank's share of the float32 weights; stage 0 updates the served weights themselves."""
        if self._zero is None:
            return {}
        return {f"masters.{index}": each.detach() for index, each in enumerate(self._updated)}

    def _partitions(self) -> dict[str, Tensor]:
        """ZeRO-3: this rank's share of each served weight."""
        if self._stage < 3:
            return {}
        return {f"weights.{name}": _partition(each) for name, each in self._named.items()}


def _whole_size(parameter: Any) -> int:
    """Values of a parameter that ZeRO-3 has taken apart; DeepSpeed adds such attributes to torch's parameters."""
    return int(parameter.ds_numel)


def _partition(parameter: Any) -> Tensor:
    """This rank's share of such a parameter, live."""
    share: Tensor = parameter.ds_tensor.detach()
    return share
