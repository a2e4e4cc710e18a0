"""What a renderer is: the one place where messages become tokens.

A renderer is pure and made for one tokenizer. The tokens of a conversation are, in this order and never
re-tokenised:

    open_turn(m1, first=True)  sampled  [close_turn()]  open_turn(m2, first=False)  sampled  [close_turn()]  …

`close_turn` stands only where the sampled tokens do not end in an end-of-turn (a length stop).
"""

from collections.abc import Sequence
from typing import Protocol

from troupe_inference.transcript import Message


class RendererError(ValueError):
    """A tokenizer that a renderer cannot work with, or a renderer that does not exist."""


class Renderer(Protocol):
    """Messages to tokens for one model family."""

    @property
    def name(self) -> str:
        """The registry's name."""

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens that end the assistant's turn when sampled."""

    @property
    def control_token_ids(self) -> frozenset[int]:
        """Tokens that no text of a message can become."""

    def open_turn(self, messages: Sequence[Message], *, first: bool) -> list[int]:
        """Tokens of the new messages, then the header of the assistant's turn.

        When not `first` they begin with what the template puts after the closed last turn.
        """

    def close_turn(self) -> list[int]:
        """The end-of-turn that is inserted after a length stop."""

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of sampled tokens, special tokens left out."""
