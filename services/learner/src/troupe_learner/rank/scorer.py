"""From padded token ids to log-probabilities of chosen tokens, for any causal model of transformers.

The output projection runs only where a log-probability is wanted, in chunks: vocabulary-sized logits exist for at most
`LOGIT_VALUES` at a time, also in the backward pass, where a chunk is recomputed.
"""

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

LOGIT_VALUES: Final = 1 << 25


@dataclass(frozen=True)
class Wanted:
    """Tokens whose log-probability is wanted, in a batch of padded rows `token_ids` [B, L].

    `predictors` [N] index the flattened [B * L] positions *before* those tokens, `targets` [N] are the tokens.
    """

    token_ids: Tensor
    predictors: Tensor
    targets: Tensor


class UnsupportedModel(Exception):
    """The model computes its logits in a way that the scorer does not."""


class TokenScorer(nn.Module):
    """Log-probability and entropy of wanted tokens, at temperature 1 over the whole vocabulary, in float32."""

    def __init__(self, model: nn.Module, logit_values: int = LOGIT_VALUES) -> None:
        super().__init__()
        # Any: the attributes that every model of transformers has are not in nn.Module's type.
        self.model: Any = model
        self._logit_values = logit_values

    def forward(self, wanted: Wanted) -> tuple[Tensor, Tensor]:
        """Both of shape [N]; entropies (nats) carry no gradient."""
        backbone = self.model.base_model
        hidden = backbone(input_ids=wanted.token_ids, use_cache=False).last_hidden_state
        chosen = hidden.flatten(0, 1).index_select(0, wanted.predictors)
        rows = max(1, self._logit_values // self.model.config.vocab_size)
        if len(chosen) <= rows:
            return self._project(chosen, wanted.targets)
        parts = [
            checkpoint(self._project, states, targets, use_reentrant=False, preserve_rng_state=False)
            for states, targets in zip(torch.split(chosen, rows), torch.split(wanted.targets, rows), strict=True)
        ]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def _project(self, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model.get_output_embeddings()(states).float()
        distribution = torch.log_softmax(logits, dim=-1)
        fixed = distribution.detach()
        entropies = -(fixed.exp() * fixed).sum(dim=-1)
        return distribution.gather(1, targets.unsqueeze(1)).squeeze(1), entropies

    @torch.no_grad()
    def check(self) -> None:
        """Compares with the model's own logits on a few tokens: some models scale or cap them.

        Raises:
            UnsupportedModel: they differ.
        """
        vocabulary = self.model.config.vocab_size
        tokens = torch.arange(8).remainder(vocabulary).unsqueeze(0)
        logits = self.model(input_ids=tokens, use_cache=False).logits.float()
        theirs = torch.log_softmax(logits, -1)[0, :-1].gather(1, tokens[0, 1:].unsqueeze(1)).squeeze(1)
        ours, _ = self(Wanted(tokens, torch.arange(7), tokens[0, 1:]))
        worst = float((ours - theirs).abs().max())
        if not worst < 1e-3:
            raise UnsupportedModel(
                f"{type(self.model).__name__} does more to its logits than project the last hidden state "
                f"(log-probabilities differ by {worst:g}): the learner cannot train it"
            )
