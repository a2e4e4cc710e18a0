"""Turns and replies from and to protobuf, at the edge of a service."""

from troupe.v1 import common_pb2, policy_pb2
from troupe_contracts.errors import InvalidArgument

from troupe_inference import wire
from troupe_inference.turns import Reply, Turn, TurnSampling


def sampling_to_proto(sampling: TurnSampling) -> common_pb2.Sampling:
    """The sampling as it travels; what is None stays unset."""
    return common_pb2.Sampling(
        temperature=sampling.temperature,
        max_tokens=sampling.max_tokens,
        seed=sampling.seed,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        training=sampling.training,
    )


def sampling_from_proto(sampling: common_pb2.Sampling) -> TurnSampling:
    """The sampling that came; `sampling_checks` judges it."""
    return TurnSampling(
        sampling.temperature,
        sampling.max_tokens,
        sampling.seed if sampling.HasField("seed") else None,
        sampling.top_p if sampling.HasField("top_p") else None,
        sampling.top_k if sampling.HasField("top_k") else None,
        sampling.training,
    )


def turn_from_proto(request: policy_pb2.GenerateRequest) -> Turn:
    """The turn that was asked for.

    Raises:
        InvalidArgument: a field breaks an invariant.
    """
    if not request.HasField("sampling"):
        raise InvalidArgument("sampling", "is not set: say how to sample, at least the temperature")
    return Turn(
        request.conversation_id,
        wire.from_proto(request.transcript),
        tuple(wire.message_from_proto(message, f"messages[{index}]") for index, message in enumerate(request.messages)),
        sampling_from_proto(request.sampling),
        wire.version_from_proto(request.version, "version") if request.HasField("version") else None,
    )


def turn_to_proto(turn: Turn) -> policy_pb2.GenerateRequest:
    """The request that asks for a turn."""
    return policy_pb2.GenerateRequest(
        conversation_id=turn.conversation_id,
        transcript=wire.to_proto(turn.transcript),
        messages=[wire.message_to_proto(message) for message in turn.messages],
        sampling=sampling_to_proto(turn.sampling),
        version=None if turn.version is None else wire.version_to_proto(turn.version),
    )


def reply_to_proto(reply: Reply) -> policy_pb2.GenerateResponse:
    """The reply as it travels."""
    return policy_pb2.GenerateResponse(
        appended=wire.to_proto(reply.appended),
        text=reply.text,
        stop_reason=wire.stop_reason_to_proto(reply.stop_reason),
        version=wire.version_to_proto(reply.version),
        prompt_tokens=reply.prompt_tokens,
        generated_tokens=reply.generated_tokens,
    )


def reply_from_proto(response: policy_pb2.GenerateResponse) -> Reply:
    """The reply that came.

    Raises:
        InvalidArgument: a field breaks an invariant.
    """
    return Reply(
        wire.from_proto(response.appended, "appended"),
        response.text,
        wire.stop_reason_from_proto(response.stop_reason, "stop_reason"),
        wire.version_from_proto(response.version, "version"),
        response.prompt_tokens,
        response.generated_tokens,
    )
