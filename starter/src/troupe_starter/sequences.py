"""Demonstrations as tokens, packed into rows.

Invariants: a conversation is tokenised by the renderer that the policy services use, turn by turn, so that
the cold start sees the very tokens of a rollout; the loss falls on what the assistant says, its end-of-turn
included, and on nothing else; sequences in one row do not see each other.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor
from troupe_inference.renderers import Renderer
from troupe_inference.transcript import Message, Role


@dataclass(frozen=True)
class TokenSequence:
    """Token ids, and for each whether the assistant says it."""

    tokens: tuple[int, ...]
    spoken: tuple[bool, ...]


@dataclass(frozen=True)
class Rows:
    """Sequences packed into rows of equal length.

    tokens, positions [rows, length]; mask [rows, 1, length, length]; `predicts` holds flat indices of the
    positions whose next token is trained on, `targets` those tokens.
    """

    tokens: Tensor
    positions: Tensor
    mask: Tensor
    predicts: Tensor
    targets: Tensor


def tokenise(messages: Sequence[Message], renderer: Renderer, tokenizer: Tokenizer) -> TokenSequence:
    """A conversation that ends in an assistant's message."""
    tokens: list[int] = []
    spoken: list[bool] = []
    new: list[Message] = []
    for message in messages:
        if message.role is not Role.ASSISTANT:
            new.append(message)
            continue
        opening = renderer.open_turn(new, first=not tokens)
        said = [*tokenizer.encode(message.content, add_special_tokens=False).ids, renderer.stop_token_ids[0]]
        tokens += opening + said
        spoken += [False] * len(opening) + [True] * len(said)
        new = []
    return TokenSequence(tuple(tokens), tuple(spoken))


def pack(sequences: Iterable[TokenSequence], rows: int, length: int) -> Iterator[Rows]:
    """Fills batches of rows: each sequence goes into the first row with room; the batch ends when one finds
    none.

    Raises ValueError for a sequence that is longer than a row.
    """
    open_rows: list[list[TokenSequence]] = [[] for _ in range(rows)]
    used = [0] * rows
    for sequence in sequences:
        size = len(sequence.tokens)
        if size > length:
            raise ValueError(f"a sequence of {size} tokens does not fit in a row of {length}: use longer rows")
        fitting = next((row for row in range(rows) if used[row] + size <= length), None)
        if fitting is None:
            yield _rows(open_rows, length)
            open_rows = [[] for _ in range(rows)]
            used = [0] * rows
            fitting = 0
        open_rows[fitting].append(sequence)
        used[fitting] += size


def _rows(packed: list[list[TokenSequence]], length: int) -> Rows:
    tokens = torch.zeros(len(packed), length, dtype=torch.long)
    positions = torch.zeros(len(packed), length, dtype=torch.long)
    # Number of the sequence within its row; padding is a sequence of its own.
    owner = torch.full((len(packed), length), -1, dtype=torch.long)
    predicts: list[int] = []
    targets: list[int] = []
    for row, sequences in enumerate(packed):
        start = 0
        for number, sequence in enumerate(sequences):
            size = len(sequence.tokens)
            tokens[row, start : start + size] = torch.tensor(sequence.tokens)
            positions[row, start : start + size] = torch.arange(size)
            owner[row, start : start + size] = number
            for index in range(1, size):
                if sequence.spoken[index]:
                    predicts.append(row * length + start + index - 1)
                    targets.append(sequence.tokens[index])
            start += size
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    mask = (owner[:, :, None] == owner[:, None, :]) & causal
    return Rows(
        tokens,
        positions,
        mask[:, None],
        torch.tensor(predicts, dtype=torch.long),
        torch.tensor(targets, dtype=torch.long),
    )
