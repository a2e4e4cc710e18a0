"""Samples from the policy at temperature 1, many sequences at a time. Used where the real engine is not
running yet.
"""

from collections.abc import Sequence

import torch

from troupe_starter.model import Policy

# Sequences generated together: their caches stay within the processor's own.
BATCH = 128


@torch.inference_mode()
def sample(
    policy: Policy, prompts: Sequence[Sequence[int]], stop: int, max_tokens: int, generator: torch.Generator
) -> list[list[int]]:
    """What the policy appends to each prompt, the stop token included if it came to that."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    outputs: list[list[int]] = [[] for _ in prompts]
    for first in range(0, len(order), BATCH):
        chosen = order[first : first + BATCH]
        generated = _sample_batch(policy, [prompts[index] for index in chosen], stop, max_tokens, generator)
        for index, tokens in zip(chosen, generated, strict=True):
            outputs[index] = tokens
    return outputs


def _sample_batch(
    policy: Policy, prompts: list[Sequence[int]], stop: int, max_tokens: int, generator: torch.Generator
) -> list[list[int]]:
    """Prompts are padded on the left, so that all of them go on at the same index."""
    longest = max(map(len, prompts))
    pads = torch.tensor([longest - len(prompt) for prompt in prompts])
    tokens = torch.tensor([[stop] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    indices = torch.arange(longest + max_tokens)
    real = indices[None, :] >= pads[:, None]
    causal = indices[None, :] <= indices[:longest, None]
    # A padding position sees itself, so that no row of the mask is empty.
    mask = (causal & real[:, None, :]) | torch.eye(longest, longest + max_tokens, dtype=torch.bool)
    positions = (indices[None, :] - pads[:, None]).clamp(min=0)
    caches = policy.new_caches(len(prompts), longest + max_tokens)
    hidden = policy.hidden(tokens, positions[:, :longest], mask[:, None, :, :longest], caches)
    going = torch.ones(len(prompts), dtype=torch.bool)
    outputs: list[list[int]] = [[] for _ in prompts]
    for index in range(longest, longest + max_tokens):
        probabilities = policy.lm_head(hidden[:, -1]).softmax(-1)
        drawn = torch.multinomial(probabilities, 1, generator=generator)
        for row, token in enumerate(drawn[:, 0].tolist()):
            if going[row]:
                outputs[row].append(token)
                going[row] = token != stop
        if not going.any():
            break
        hidden = policy.hidden(
            drawn, positions[:, index : index + 1], real[:, None, None, : index + 1], caches, start=index
        )
    return outputs
