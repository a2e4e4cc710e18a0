"""Which sequences go into which optimizer step, forward pass and rank. Pure; the same on every rank.

- A batch is split *in order* into mini-batches, one optimizer step each, of about equal token count.
- A mini-batch is cut into micro-batches, one forward pass each: sequences sorted by length, padded on the right to the
  longest of the pass, at most a budget of padded tokens. With a causal model, tokens never see what stands to their right,
  so padding changes nothing and no mask is needed: on the CPU this is the fastest exact way for many short sequences
  (sorted neighbours have nearly equal lengths, so little is padded), and nothing can leak from one sequence to another.
- Micro-batches are dealt to ranks largest first. Every rank gets the same number, because a ZeRO-3 forward pass is a
  collective: a rank that has fewer runs an empty one (`Microbatch.counts` is False), whose weights are zeroed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Microbatch:
    """Indices into the batch's sequences that share one forward pass."""

    sequences: tuple[int, ...]
    counts: bool = True


def split_in_order(lengths: Sequence[int], parts: int) -> list[range]:
    """Ranges of indices with about equal token counts, in order and without gaps.

    Gives `min(parts, len(lengths))` ranges, none empty. A sequence goes where the middle of its tokens falls.
    """
    wanted = min(parts, len(lengths))
    if wanted < 1:
        return []
    total = sum(lengths)
    ends: list[int] = []
    before = 0
    for index, length in enumerate(lengths):
        middle = before + length / 2
        part = min(int(middle * wanted / total), wanted - 1) if total else 0
        while len(ends) < part:
            ends.append(index)
        before += length
    while len(ends) < wanted - 1:
        ends.append(len(lengths))
    ends.append(len(lengths))
    return _without_empty(ends)


def _without_empty(ends: list[int]) -> list[range]:
    """Moves the borders so that every part has at least one index."""
    parts = len(ends)
    count = ends[-1]
    starts = [0, *ends[:-1]]
    for part in range(1, parts):
        starts[part] = max(starts[part], starts[part - 1] + 1)
    for part in range(parts - 1, 0, -1):
        starts[part] = min(starts[part], count - (parts - part))
    return [range(start, end) for start, end in zip(starts, [*starts[1:], count], strict=True)]


def microbatches(lengths: Sequence[int], indices: Sequence[int], token_budget: int) -> list[Microbatch]:
    """Cuts `indices` into forward passes of at most `token_budget` padded tokens, longest first.

    A sequence longer than the budget goes alone. Ties are broken by index, so the cut is deterministic.
    """
    result: list[Microbatch] = []
    current: list[int] = []
    for index in sorted(indices, key=lambda each: (-lengths[each], each)):
        longest = lengths[current[0]] if current else lengths[index]
        if current and longest * (len(current) + 1) > token_budget:
            result.append(Microbatch(tuple(current)))
            current = []
        current.append(index)
    if current:
        result.append(Microbatch(tuple(current)))
    return result


def deal(passes: Sequence[Microbatch], rank: int, ranks: int) -> list[Microbatch]:
    """The forward passes of one rank; all ranks get equally many, at least one where there is any."""
    if not passes:
        return []
    mine = list(passes[rank::ranks])
    each = -(-len(passes) // ranks)
    # The smallest pass is the cheapest to run for nothing.
    return mine + [replace(passes[-1], counts=False)] * (each - len(mine))
