"""Typed errors: raised in a servicer, read on the client side.

A servicer raises one of the `ServiceError`s; the server's interceptor (`calls`) sends it as a gRPC status
with `google.rpc` details. Anything else that a servicer lets out becomes INTERNAL with an error id. On the
client side `describe`, `is_infrastructure` and `retry_delay` read whatever status came, ours or another
server's.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final, Self

import grpc
from google.protobuf import duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

DETAILS_KEY: Final = "grpc-status-details-bin"
PUSHBACK_KEY: Final = "grpc-retry-pushback-ms"
# The text travels twice (status message and details), the first time percent-encoded.
MAX_MESSAGE_CHARACTERS: Final = 4096

# Codes that say nothing about what was asked, only about who should have done it: none may become a reward.
INFRASTRUCTURE_CODES: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.DATA_LOSS,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
    }
)
_DETAIL_TYPES: Final[tuple[type[Message], ...]] = (
    error_details_pb2.BadRequest,
    error_details_pb2.PreconditionFailure,
    error_details_pb2.ResourceInfo,
    error_details_pb2.RetryInfo,
)


class ServiceError(Exception):
    """An error with a gRPC status code, a text for people and machine-readable details. Raise a subclass."""

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN

    def __init__(self, message: str, details: Sequence[Message] = (), retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.message = _cut(message)
        self.retry_after_seconds = retry_after_seconds
        self.details: tuple[Message, ...] = tuple(details)
        if retry_after_seconds is not None:
            delay = duration_pb2.Duration()
            delay.FromMilliseconds(math.ceil(retry_after_seconds * 1000))
            self.details += (error_details_pb2.RetryInfo(retry_delay=delay),)

    def trailers(self) -> tuple[tuple[str, str | bytes], ...]:
        """Trailing metadata that carries the details, and the retry delay as gRPC's own pushback."""
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        for detail in self.details:
            status.details.add().Pack(detail)
        trailers: tuple[tuple[str, str | bytes], ...] = ((DETAILS_KEY, status.SerializeToString()),)
        if self.retry_after_seconds is not None:
            trailers += ((PUSHBACK_KEY, str(math.ceil(self.retry_after_seconds * 1000))),)
        return trailers


class InvalidArgument(ServiceError):
    """A field of the request is wrong, whatever the state of the service."""

    code = grpc.StatusCode.INVALID_ARGUMENT

    def __init__(self, field: str, message: str) -> None:
        self._set([(field, message)])

    def _set(self, violations: Sequence[tuple[str, str]]) -> None:
        cut = [(field, _cut(message)) for field, message in violations]
        request = error_details_pb2.BadRequest(
            field_violations=[
                error_details_pb2.BadRequest.FieldViolation(field=field, description=message) for field, message in cut
            ]
        )
        super().__init__("; ".join(f"{field}: {message}" for field, message in cut), [request])
        self.violations = tuple(cut)

    @classmethod
    def every(cls, violations: Iterable[tuple[str, str]]) -> Self:
        """One error for several (field, message) pairs, at least one."""
        pairs = list(violations)
        if not pairs:
            raise ValueError("an InvalidArgument needs at least one violation")
        error = cls(*pairs[0])
        error._set(pairs)
        return error


class NotFound(ServiceError):
    """A thing that the request names does not exist."""

    code = grpc.StatusCode.NOT_FOUND

    def __init__(self, kind: str, resource_id: str, remedy: str = "") -> None:
        resource = error_details_pb2.ResourceInfo(
            resource_type=kind, resource_name=_cut(resource_id), description=remedy
        )
        message = f"there is no {kind} {_cut(resource_id)!r}" + (f"; {remedy}" if remedy else "")
        super().__init__(message, [resource])


class FailedPrecondition(ServiceError):
    """The right request at the wrong moment; `subject` names what holds it."""

    code = grpc.StatusCode.FAILED_PRECONDITION

    def __init__(self, subject: str, message: str) -> None:
        violation = error_details_pb2.PreconditionFailure.Violation(
            type=type(self).__name__, subject=subject, description=_cut(message)
        )
        super().__init__(f"{subject}: {message}", [error_details_pb2.PreconditionFailure(violations=[violation])])


class Exhausted(ServiceError):
    """No room now; the same request may succeed after the delay."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        super().__init__(message, retry_after_seconds=retry_after_seconds)


class Unavailable(ServiceError):
    """What should do the work is not there, for now."""

    code = grpc.StatusCode.UNAVAILABLE


class Aborted(ServiceError):
    """The request contradicts what has been done already; the caller must start over at a higher level."""

    code = grpc.StatusCode.ABORTED


class DataLoss(ServiceError):
    """Bytes are not what their digest says."""

    code = grpc.StatusCode.DATA_LOSS


class DeadlineExceeded(ServiceError):
    """It took longer than was allowed."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Unauthenticated(ServiceError):
    """The call shows no credential, or one that this service does not take."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(ServiceError):
    """The credential is good, and not for this call."""

    code = grpc.StatusCode.PERMISSION_DENIED


class Unimplemented(ServiceError):
    """This server does not have that method."""

    code = grpc.StatusCode.UNIMPLEMENTED


class Internal(ServiceError):
    """A defect of ours. Raised by the interceptor for whatever a servicer did not foresee."""

    code = grpc.StatusCode.INTERNAL


class Relayed(ServiceError):
    """Another service's error, passed on with code, details and retry delay by one that only forwards."""

    def __init__(self, error: grpc.RpcError, source: str) -> None:
        self.code = code_of(error)
        super().__init__(f"{source}: {_message(error)}", _details(error))
        self.retry_after_seconds = retry_delay(error)


def describe(error: grpc.RpcError) -> str:
    """The error in one readable line: code, message, violations that the message leaves out, retry delay."""
    message = " ".join(_message(error).split()) or "no message"
    violations: list[str] = []
    for detail in _details(error):
        if isinstance(detail, error_details_pb2.BadRequest):
            violations += [f"{each.field}: {each.description}" for each in detail.field_violations]
        elif isinstance(detail, error_details_pb2.PreconditionFailure):
            violations += [f"{each.subject}: {each.description}" for each in detail.violations]
    # Our own servers put the violations into the message too: only what is new is worth its place.
    lines = [" ".join(violation.split()) for violation in violations]
    parts = [f"{code_of(error).name}: {message}", *(line for line in lines if line not in message)]
    delay = retry_delay(error)
    if delay is not None:
        parts.append(f"retry in {delay:g} s")
    return "; ".join(parts)


def is_infrastructure(error: grpc.RpcError) -> bool:
    """True when the error says nothing about what was asked: retry elsewhere or later, never reward it."""
    return code_of(error) in INFRASTRUCTURE_CODES


def retry_delay(error: grpc.RpcError) -> float | None:
    """Seconds after which the server expects the same request to succeed; None if it did not say."""
    for detail in _details(error):
        if isinstance(detail, error_details_pb2.RetryInfo):
            return float(detail.retry_delay.ToTimedelta().total_seconds())
    for key, value in _trailers(error):
        if key == PUSHBACK_KEY and isinstance(value, str) and value.isdigit():
            return int(value) / 1000
    return None


def code_of(error: grpc.RpcError) -> grpc.StatusCode:
    """The status code of any RPC error, UNKNOWN where there is none."""
    code = error.code() if hasattr(error, "code") else None
    return code if isinstance(code, grpc.StatusCode) else grpc.StatusCode.UNKNOWN


def _cut(text: str) -> str:
    if len(text) <= MAX_MESSAGE_CHARACTERS:
        return text
    return f"{text[:MAX_MESSAGE_CHARACTERS]} … ({len(text)} characters)"


def _message(error: grpc.RpcError) -> str:
    details = error.details() if hasattr(error, "details") else None
    return str(details or "")


def _trailers(error: grpc.RpcError) -> list[tuple[str, str | bytes]]:
    # gRPC's stubs take a pair of metadata for a class that cannot be unpacked.
    metadata: Any = error.trailing_metadata() if hasattr(error, "trailing_metadata") else None
    return [(str(key), value) for key, value in metadata or ()]


def _details(error: grpc.RpcError) -> list[Message]:
    """The details that we know how to read."""
    packed = next((value for key, value in _trailers(error) if key == DETAILS_KEY), b"")
    if not isinstance(packed, bytes):
        return []
    try:
        status = status_pb2.Status.FromString(packed)
    except DecodeError:
        return []  # not a google.rpc.Status; code and message still stand
    known: list[Message] = []
    for detail in status.details:
        for kind in _DETAIL_TYPES:
            message = kind()
            if detail.Unpack(message):
                known.append(message)
    return known
