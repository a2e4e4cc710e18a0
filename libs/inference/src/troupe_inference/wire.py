"""Transcripts from and to protobuf, at the edge of a service.

`to_proto` and `from_proto` are inverse to each other. `from_proto` refuses what breaks an invariant, naming
the field. In a request the log-probabilities of earlier runs may be left out (`log_probs_required=False`):
a policy needs only the ids.
"""

from typing import Final

from troupe.v1 import common_pb2, transcript_pb2
from troupe_contracts.errors import InvalidArgument

from troupe_inference.transcript import Generated, Message, Role, StopReason, TokenRun, Transcript, Version

_ROLES: Final = {
    common_pb2.MESSAGE_ROLE_SYSTEM: Role.SYSTEM,
    common_pb2.MESSAGE_ROLE_USER: Role.USER,
    common_pb2.MESSAGE_ROLE_ASSISTANT: Role.ASSISTANT,
    common_pb2.MESSAGE_ROLE_TOOL: Role.TOOL,
}
_ROLE_NUMBERS: Final = {role: number for number, role in _ROLES.items()}
_STOP_REASONS: Final = {
    transcript_pb2.STOP_REASON_END_OF_TURN: StopReason.END_OF_TURN,
    transcript_pb2.STOP_REASON_LENGTH: StopReason.LENGTH,
    transcript_pb2.STOP_REASON_CONTEXT_OVERFLOW: StopReason.CONTEXT_OVERFLOW,
}
_STOP_REASON_NUMBERS: Final = {reason: number for number, reason in _STOP_REASONS.items()}


def version_to_proto(version: Version) -> common_pb2.PolicyVersion:
    return common_pb2.PolicyVersion(lineage=version.lineage, number=version.number)


def version_from_proto(version: common_pb2.PolicyVersion, field: str) -> Version:
    """Raises InvalidArgument for an empty lineage."""
    if not version.lineage:
        raise InvalidArgument(f"{field}.lineage", "is empty: name the lineage of the weights")
    return Version(version.lineage, version.number)


def message_to_proto(message: Message) -> common_pb2.ChatMessage:
    return common_pb2.ChatMessage(role=_ROLE_NUMBERS[message.role], content=message.content)


def message_from_proto(message: common_pb2.ChatMessage, field: str) -> Message:
    """Raises InvalidArgument for a role that is not set or not known."""
    role = _ROLES.get(message.role)
    if role is None:
        raise InvalidArgument(f"{field}.role", f"is {message.role}: set SYSTEM, USER, ASSISTANT or TOOL")
    return Message(role, message.content)


def stop_reason_to_proto(reason: StopReason) -> transcript_pb2.StopReason.ValueType:
    return _STOP_REASON_NUMBERS[reason]


def stop_reason_from_proto(reason: transcript_pb2.StopReason.ValueType, field: str) -> StopReason:
    """Raises InvalidArgument for a reason that is not set or not known."""
    known = _STOP_REASONS.get(reason)
    if known is None:
        raise InvalidArgument(field, f"is {reason}: set END_OF_TURN, LENGTH or CONTEXT_OVERFLOW")
    return known


def to_proto(transcript: Transcript) -> transcript_pb2.Transcript:
    """The transcript as it travels."""
    return transcript_pb2.Transcript(
        token_ids=transcript.token_ids,
        runs=[_run_to_proto(run) for run in transcript.runs],
        messages=[message_to_proto(message) for message in transcript.messages],
    )


def from_proto(transcript: transcript_pb2.Transcript, field: str = "transcript") -> Transcript:
    """The transcript that came; `field` is what errors call it.

    Raises:
        InvalidArgument: a field breaks an invariant.
    """
    total = sum(run.length for run in transcript.runs)
    if total != len(transcript.token_ids):
        raise InvalidArgument(
            f"{field}.runs", f"cover {total} tokens, {field}.token_ids has {len(transcript.token_ids)}"
        )
    return Transcript(
        tuple(transcript.token_ids),
        tuple(_run_from_proto(run, f"{field}.runs[{index}]") for index, run in enumerate(transcript.runs)),
        tuple(
            message_from_proto(message, f"{field}.messages[{index}]")
            for index, message in enumerate(transcript.messages)
        ),
    )


def _run_to_proto(run: TokenRun) -> transcript_pb2.TokenRun:
    if run.generated is None:
        return transcript_pb2.TokenRun(kind=transcript_pb2.TOKEN_RUN_KIND_INSERTED, length=run.length)
    return transcript_pb2.TokenRun(
        kind=transcript_pb2.TOKEN_RUN_KIND_GENERATED,
        length=run.length,
        version=version_to_proto(run.generated.version),
        log_probs=run.generated.log_probs,
        stop_reason=stop_reason_to_proto(run.generated.stop_reason),
    )


def _run_from_proto(run: transcript_pb2.TokenRun, field: str) -> TokenRun:
    if run.length == 0:
        raise InvalidArgument(f"{field}.length", "is 0: a run has at least one token")
    if run.kind == transcript_pb2.TOKEN_RUN_KIND_INSERTED:
        if run.log_probs or run.HasField("version") or run.stop_reason:
            raise InvalidArgument(
                field, "is inserted and has a version, a stop reason or log-probabilities: leave them out"
            )
        return TokenRun(run.length)
    if run.kind != transcript_pb2.TOKEN_RUN_KIND_GENERATED:
        raise InvalidArgument(f"{field}.kind", f"is {run.kind}: set INSERTED or GENERATED")
    log_probs = tuple(run.log_probs)
    if len(log_probs) != run.length:
        raise InvalidArgument(
            f"{field}.log_probs", f"has {len(log_probs)} values for {run.length} tokens: send one per token"
        )
    return TokenRun(
        run.length,
        Generated(
            version=version_from_proto(run.version, f"{field}.version"),
            log_probs=log_probs,
            stop_reason=stop_reason_from_proto(run.stop_reason, f"{field}.stop_reason"),
        ),
    )
