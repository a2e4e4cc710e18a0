"""The one place that owns transcripts: conversations of one execution, append-only.

A script names a conversation and gives new messages; what the conversation holds, no script can read back as tokens or
change. The transcript is kept in the form that goes over the wire and becomes arrays once, when the execution has ended.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from troupe.v1 import common_pb2, policy_pb2, transcript_pb2

from troupe_orchestrator.tree import ConversationPayload, TextMessage, TokenRecord

ROLE_NAMES = {
    common_pb2.MESSAGE_ROLE_SYSTEM: "system",
    common_pb2.MESSAGE_ROLE_USER: "user",
    common_pb2.MESSAGE_ROLE_ASSISTANT: "assistant",
    common_pb2.MESSAGE_ROLE_TOOL: "tool",
}


@dataclass(slots=True)
class Conversation:
    """One agent's dialogue inside an execution."""

    conversation_id: str
    agent: str
    request: policy_pb2.GenerateRequest = field(default_factory=policy_pb2.GenerateRequest)
    """Of the next turn, or of the one under way: made once and changed, since a copy of a transcript for every turn is work
    that grows with its square."""
    busy: bool = False
    """A turn is being generated; the script may not ask for another meanwhile."""
    turns: int = 0
    refusals: list[str] = field(default_factory=list)
    """Why it was refused turns, in order."""

    @property
    def transcript(self) -> transcript_pb2.Transcript:
        return self.request.transcript

    def append(self, appended: transcript_pb2.Transcript) -> None:
        """Add what one generation appended."""
        self.transcript.MergeFrom(appended)
        self.turns += 1

    def replies(self) -> list[str]:
        """Texts of the agent's turns, in order."""
        return [
            message.content for message in self.transcript.messages if message.role == common_pb2.MESSAGE_ROLE_ASSISTANT
        ]


def messages_problem(conversation: Conversation, messages: Sequence[common_pb2.ChatMessage]) -> str:
    """Why a script's messages cannot follow a conversation, empty if they can.

    Looked at here, so that what a script sends wrong is its own fault and never looks like the engine's refusal.
    """
    new = not conversation.transcript.messages
    if not messages:
        return "an agent call needs at least one new message"
    for index, message in enumerate(messages):
        if message.role not in ROLE_NAMES or message.role == common_pb2.MESSAGE_ROLE_ASSISTANT:
            return "an agent call can only send system, user and tool messages"
        if message.role == common_pb2.MESSAGE_ROLE_SYSTEM and (index > 0 or not new):
            return "a system message can only be the first of a conversation"
    if new and messages[0].role == common_pb2.MESSAGE_ROLE_TOOL:
        return "a conversation cannot begin with a tool's result"
    return ""


def token_record(transcript: transcript_pb2.Transcript) -> TokenRecord | None:
    """The transcript's tokens as arrays; None without token access."""
    if not transcript.token_ids:
        return None
    runs = transcript.runs
    return TokenRecord(
        token_ids=np.array(transcript.token_ids, dtype=np.int32),
        run_generated=np.array([_generated(run) for run in runs], dtype=np.bool_),
        run_lengths=np.array([run.length for run in runs], dtype=np.int32),
        run_versions=tuple(f"{run.version.lineage}:{run.version.number}" if _generated(run) else "" for run in runs),
        log_probs=np.concatenate([np.array(run.log_probs, dtype=np.float32) for run in runs]),
    )


def conversation_payload(
    role: str, agent: str, conversation_id: str, transcript: transcript_pb2.Transcript
) -> ConversationPayload:
    """The transcript's text side."""
    return ConversationPayload(
        role="designer" if role == "designer" else "executor",
        agent=agent,
        conversation_id=conversation_id,
        messages=tuple(
            TextMessage(role=ROLE_NAMES[message.role], content=message.content)  # type: ignore[arg-type]
            for message in transcript.messages
        ),
        stop_reasons=tuple(
            transcript_pb2.StopReason.Name(run.stop_reason).removeprefix("STOP_REASON_").lower()
            for run in transcript.runs
            if _generated(run)
        ),
    )


def _generated(run: transcript_pb2.TokenRun) -> bool:
    return run.kind == transcript_pb2.TOKEN_RUN_KIND_GENERATED
