"""A conversation as tokens, append-only.

Invariants, checked on construction:

- the lengths of the runs sum to the number of token ids;
- a generated run names the version that sampled it, why it ended, and one log-probability per token;
- an inserted run has none of these.

Nothing here is ever re-tokenised: `messages` is the same conversation as text, for people and for engines
that have no token access. `wire` holds the conversion from and to protobuf.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Self


class Role(Enum):
    """Whose words a message holds."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    # The result of a tool that the assistant's last message asked for.
    TOOL = "tool"


class StopReason(Enum):
    """Why a generation ended."""

    # An end-of-turn token was sampled; it is the last token of the generated run.
    END_OF_TURN = "end_of_turn"
    # `max_tokens` was reached; an end-of-turn follows as an inserted run.
    LENGTH = "length"
    # The new messages leave no room to generate: nothing was appended.
    CONTEXT_OVERFLOW = "context_overflow"


@dataclass(frozen=True, slots=True)
class Message:
    """One message as text."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """Identifies a set of weights."""

    lineage: str
    number: int

    def __str__(self) -> str:
        return f"{self.lineage}@{self.number}"


@dataclass(frozen=True, slots=True)
class Generated:
    """What is known of sampled tokens beyond their ids."""

    version: Version
    # Natural log-probability of each token under the full distribution at temperature 1.
    log_probs: tuple[float, ...]
    stop_reason: StopReason


@dataclass(frozen=True, slots=True)
class TokenRun:
    """A span of consecutive tokens of one kind: generated when `generated` is set, else inserted."""

    length: int
    generated: Generated | None = None

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"a run has {self.length} tokens, it needs at least 1")
        if self.generated is not None and len(self.generated.log_probs) != self.length:
            raise ValueError(
                f"a generated run of {self.length} tokens has {len(self.generated.log_probs)} "
                "log-probabilities, it needs one per token"
            )


@dataclass(frozen=True, slots=True)
class Transcript:
    """A conversation, or what one generation appended to it."""

    token_ids: tuple[int, ...] = ()
    runs: tuple[TokenRun, ...] = ()
    messages: tuple[Message, ...] = ()

    def __post_init__(self) -> None:
        total = sum(run.length for run in self.runs)
        if total != len(self.token_ids):
            raise ValueError(f"the runs cover {total} tokens, the transcript has {len(self.token_ids)}")

    @classmethod
    def inserted(cls, token_ids: list[int] | tuple[int, ...], messages: tuple[Message, ...] = ()) -> Self:
        """One inserted run (none for no tokens)."""
        return cls(tuple(token_ids), (TokenRun(len(token_ids)),) if token_ids else (), messages)

    @classmethod
    def sampled(
        cls, token_ids: list[int] | tuple[int, ...], generated: Generated, messages: tuple[Message, ...] = ()
    ) -> Self:
        """One generated run."""
        return cls(tuple(token_ids), (TokenRun(len(token_ids), generated),), messages)

    def appended(self, more: "Transcript") -> "Transcript":
        """A new transcript with `more` after this one; runs are never joined."""
        return Transcript(self.token_ids + more.token_ids, self.runs + more.runs, self.messages + more.messages)

    def trained_mask(self) -> tuple[bool, ...]:
        """For each token, whether it was sampled from the policy."""
        return tuple(run.generated is not None for run in self.runs for _ in range(run.length))
