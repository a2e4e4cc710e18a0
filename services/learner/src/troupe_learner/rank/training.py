"""One TrainStep on one rank: mini-batches, forward, loss, backward, optimizer step, metrics.

Every rank runs the same plan on its share of the forward passes. Facts that the plan rests on:

- A sequence without any weight x advantage contributes nothing to the loss and is left out, so that a step can never move
  weights on account of tokens that are not trained. If nothing is left, weights and moments stay untouched.
- The ratio is taken against *old* log-probabilities. `behaviour`: those of the engine that sampled; exact where engine and
  learner agree (float32 on the CPU: 1e-6), and free. `recompute`: the learner's own before the step's first update; costs
  a forward pass over all mini-batches but the first, whose own log-probabilities are the old ones. An importance cap
  needs both, so it implies `recompute`.
- The difference between learner and engine is measured on the first mini-batch, before any update.
- A step that meets a loss or a gradient that is not finite is undone: weights and moments are bit for bit as before.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from troupe_learner.batch_file import BatchArrays
from troupe_learner.losses.clipped_policy_gradient import Clip, LossInputs, clipped_policy_gradient
from troupe_learner.optimization import Optimization
from troupe_learner.packing import Microbatch, deal, microbatches, split_in_order
from troupe_learner.rank.engine import Engine, NonFiniteGradient, copy_into, snapshot
from troupe_learner.rank.meters import Meters
from troupe_learner.rank.progress import Counted, Progress
from troupe_learner.rank.scorer import Wanted


class StepRefused(Exception):
    """The step was undone; the text names what was not finite."""


@dataclass(frozen=True)
class Pass:
    """A forward pass: padded tokens, and per-token values of the trained tokens only, shape [N]."""

    wanted: Wanted
    weights: Tensor
    advantages: Tensor
    behaviour: Tensor
    owners: Tensor
    padded_tokens: int


def train_step(
    engine: Engine,
    batch: BatchArrays,
    optimization: Optimization,
    *,
    token_budget: int,
    recompute_old: bool,
    progress: Progress,
) -> dict[str, float]:
    """Trains one batch; returns metrics, equal on every rank.

    Raises:
        StepRefused: on every rank alike; weights and moments are as before.
    """
    started = time.perf_counter()
    lengths = [int(each) for each in batch.lengths]
    trainable = contributing(batch)
    parts = split_in_order([lengths[index] for index in trainable], optimization.mini_batches)
    plan = [
        deal(
            microbatches(lengths, [trainable[index] for index in part], token_budget),
            engine.rank,
            engine.ranks,
        )
        for part in parts
    ]
    recompute = recompute_old or optimization.importance_cap > 0
    before = snapshot(engine) if parts and (len(parts) > 1 or optimization.reset_optimizer) else None
    if optimization.reset_optimizer and parts:
        engine.reset_moments()
    again = sum(map(len, plan[1:])) if recompute else 0
    # Each forward pass is a piece, and each optimizer step.
    pieces = Counted(progress, sum(map(len, plan)) + len(plan) + again)
    old = _old_log_probs(engine, batch, plan[1:], pieces) if recompute else {}
    scale = float(len(parts)) if optimization.scale_by_mini_batches else 1.0
    meters = Meters()
    for number, passes in enumerate(plan, start=1):
        for index, microbatch in enumerate(passes):
            engine.begin(last=index == len(passes) - 1)
            each = build_pass(batch, microbatch)
            log_probs, entropies = engine.forward(each.wanted)
            if not recompute:
                reference = each.behaviour
            elif number == 1:
                reference = log_probs.detach()
            else:
                reference = old[number - 2, index]
            clip = Clip(optimization.clip_low, optimization.clip_high, optimization.importance_cap)
            inputs = LossInputs(log_probs, reference, each.behaviour, each.advantages, each.weights * scale)
            outputs = clipped_policy_gradient(inputs, clip)
            engine.backward(_revealing(outputs.loss))
            pieces.piece()
            if microbatch.counts:
                meters.add_loss(inputs, outputs, entropies, each.padded_tokens, scale)
                if number == 1:
                    meters.add_mismatch(log_probs.detach(), each.behaviour)
                meters.note_bad(inputs, outputs, each.owners)
        try:
            norm = engine.apply(optimization.learning_rate, optimization.max_grad_norm)
        except NonFiniteGradient as error:
            if before is not None:
                copy_into(engine.live(), before)
            raise StepRefused(
                f"{_culprit(batch, trainable, parts[number - 1], meters.first_bad(engine.ranks))} (mini-batch {number} "
                f"of {len(plan)}: {error}); weights and moments are as before the step, which would end so again: look "
                "at that sequence, or go back to a checkpoint and go on with a lower learning rate"
            ) from error
        meters.add_norm(norm)
        pieces.piece()
    metrics = meters.reduced(engine.ranks)
    metrics["sequences"] = float(len(lengths))
    metrics["sequences_trained"] = float(len(trainable))
    metrics["tokens"] = float(sum(lengths))
    metrics["optimizer_steps"] = float(len(plan))
    metrics["learning_rate"] = optimization.learning_rate
    metrics["seconds"] = time.perf_counter() - started
    return metrics


def _revealing(loss: Tensor) -> Tensor:
    """The loss, whose gradient is not finite wherever it is not finite itself: so no engine can apply it unseen."""
    return loss if torch.isfinite(loss) else loss * torch.nan


def _culprit(batch: BatchArrays, trainable: Sequence[int], part: range, first: tuple[int, str] | None) -> str:
    """What was not finite first: of one sequence, or else of the mini-batch `part` of the trainable ones."""
    if first is not None:
        return f"the {first[1]} of sequence {batch.ids[first[0]]} is not finite"
    ids = [batch.ids[trainable[index]] for index in (part[0], part[-1])]
    return f"the gradient of sequences {ids[0]} to {ids[1]} is not finite"


def contributing(batch: BatchArrays) -> list[int]:
    """Sequences with at least one token whose weight x advantage is not zero."""
    effect = (batch.weights != 0) & (batch.advantages != 0)
    counts = np.add.reduceat(effect, batch.offsets()[:-1]) if len(effect) else np.zeros(0)
    return [int(index) for index in np.flatnonzero(counts)]


def build_pass(batch: BatchArrays, microbatch: Microbatch) -> Pass:
    """Pads the sequences of a forward pass; weights are zero where the pass does not count."""
    offsets = batch.offsets()
    length = max(int(batch.lengths[index]) for index in microbatch.sequences)
    tokens = np.zeros((len(microbatch.sequences), length), dtype=np.int64)
    predictors, where, owners = [], [], []
    for row, index in enumerate(microbatch.sequences):
        begin, end = int(offsets[index]), int(offsets[index + 1])
        tokens[row, : end - begin] = batch.token_ids[begin:end]
        trained = np.flatnonzero(batch.weights[begin:end])
        predictors.append(trained - 1 + row * length)
        where.append(trained + begin)
        owners.append(np.full(len(trained), index))
    picked = np.concatenate(where)
    weights = torch.from_numpy(batch.weights[picked])
    return Pass(
        Wanted(
            torch.from_numpy(tokens),
            torch.from_numpy(np.concatenate(predictors)),
            torch.from_numpy(batch.token_ids[picked]),
        ),
        weights if microbatch.counts else torch.zeros_like(weights),
        torch.from_numpy(batch.advantages[picked]),
        torch.from_numpy(batch.behaviour_log_probs[picked]),
        torch.from_numpy(np.concatenate(owners)),
        tokens.size,
    )


@torch.no_grad()
def _old_log_probs(
    engine: Engine, batch: BatchArrays, plan: Sequence[Sequence[Microbatch]], pieces: Counted
) -> dict[tuple[int, int], Tensor]:
    """The learner's own log-probabilities under the current weights, by (mini-batch, pass) of `plan`."""
    found = {}
    for number, passes in enumerate(plan):
        for index, microbatch in enumerate(passes):
            found[number, index] = engine.forward(build_pass(batch, microbatch).wanted)[0]
            pieces.piece()
    return found
