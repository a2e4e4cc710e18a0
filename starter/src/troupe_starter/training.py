"""The supervised part of the cold start: next-token loss on what the teacher says, Muon and AdamW, linear
decay.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from troupe_starter.model import Policy
from troupe_starter.optimizers import Muon, hidden_matrices, other_weights
from troupe_starter.sequences import Rows


@dataclass(frozen=True)
class Recipe:
    """How the cold start trains."""

    steps: int = 900
    rows: int = 4
    row_length: int = 192
    muon_learning_rate: float = 2.5e-3
    adamw_learning_rate: float = 3e-3
    warm_up: int = 30
    gradient_clip: float = 1.0


def fit(policy: Policy, batches: Iterator[Rows], steps: int, recipe: Recipe, progress: Callable[[], None]) -> None:
    """Trains for `steps` batches; `progress` is called after each."""
    muon = Muon(hidden_matrices(policy))
    adamw = torch.optim.AdamW(other_weights(policy), betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(steps):
        share = min((step + 1) / recipe.warm_up, (steps - step) / steps)
        loss = batch_loss(policy, next(batches))
        policy.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(policy.parameters(), recipe.gradient_clip)
        muon.step(recipe.muon_learning_rate * share)
        adamw.param_groups[0]["lr"] = recipe.adamw_learning_rate * share
        adamw.step()
        progress()


def batch_loss(policy: Policy, rows: Rows) -> torch.Tensor:
    """Mean loss over the tokens that are trained on; logits are made for these only."""
    hidden = policy.hidden(rows.tokens, rows.positions, rows.mask)
    logits = policy.lm_head(hidden.flatten(0, 1)[rows.predicts])
    return F.cross_entropy(logits, rows.targets)
