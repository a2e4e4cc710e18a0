"""One turn of a conversation, asked of a policy and answered by it.

Three policies answer: `token_policy` (an engine in this process), `engines.openai` (a hosted model) and
`engines.remote` (another Policy service). Their errors are the typed errors of the contracts, so a servicer
passes them on as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from troupe.v1 import policy_pb2
from troupe_contracts.errors import InvalidArgument

from troupe_inference.transcript import Message, Role, StopReason, Transcript, Version


@dataclass(frozen=True, slots=True)
class TurnSampling:
    """How a turn is to be sampled, as it was asked for."""

    temperature: float
    # 0 takes what the context leaves.
    max_tokens: int = 0
    seed: int | None = None
    top_p: float | None = None
    top_k: int | None = None
    # True where the tokens will be trained on.
    training: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """A conversation, new messages for it, and how to answer them."""

    conversation_id: str
    transcript: Transcript
    messages: tuple[Message, ...]
    sampling: TurnSampling
    # When set, the version that must answer.
    version: Version | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What a turn appended, and what it is worth knowing of it."""

    appended: Transcript
    text: str
    stop_reason: StopReason
    version: Version
    # Tokens of the whole context before the reply.
    prompt_tokens: int
    # Tokens sampled.
    generated_tokens: int


class Policy(Protocol):
    """A model that continues conversations."""

    async def continue_turn(self, turn: Turn) -> Reply:
        """Answers one turn. Raises the typed errors that `Policy.Generate` documents."""

    async def describe(self) -> policy_pb2.PolicyInfo:
        """What is served, and how it can be used."""

    async def close(self) -> None:
        """Lets go of engine or connection."""


def check_messages(transcript: Transcript, messages: Sequence[Message]) -> None:
    """Checks that the messages may follow the transcript.

    Raises: InvalidArgument: there are none, an assistant's message is among them, a system message is not
    the very first of the conversation, or a tool's result begins it.
    """
    if not messages:
        raise InvalidArgument("messages", "is empty: send at least one new message")
    new = not transcript.runs and not transcript.messages
    for index, message in enumerate(messages):
        if message.role is Role.ASSISTANT:
            raise InvalidArgument(
                f"messages[{index}].role", "is ASSISTANT: what the model said is in the transcript, as it sampled it"
            )
        if message.role is Role.SYSTEM and (index > 0 or not new):
            raise InvalidArgument(
                f"messages[{index}].role", "is SYSTEM: a system message is only the first of a conversation"
            )
    if new and messages[0].role is Role.TOOL:
        raise InvalidArgument("messages[0].role", "is TOOL: a conversation does not begin with a tool's result")
