"""What surrounds each call on a server: ids, access, deadline, typed errors, metrics.

One interceptor does all five, in this order around the servicer's method:

- ids: run, step, task, execution and trace ids from the metadata are bound to all that the call logs;
- access: the server's `Guard` sees the caller's credential before any message of the call is read;
- deadline: a unary call without one gets `UNARY_SECONDS`; a stream on which nothing moves ends after
  `IDLE_SECONDS`;
- errors: a `ServiceError` becomes its status with details; any other exception becomes INTERNAL with an error
  id, and its traceback goes to the log under that id, never to the client;
- metrics: calls and seconds by service, method and code.

To gRPC each method is one with a stream of requests, since it would read the request of another before calling us. A
message that cannot be parsed is INVALID_ARGUMENT.

Servicer methods are `async def` (coroutines or async generators). A plain function, which would block the
loop, is answered as UNIMPLEMENTED; so are the methods of the generated base class.
"""

import asyncio
import contextlib
import inspect
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeAlias

import grpc
import structlog
from google.protobuf.message import DecodeError
from prometheus_client import Counter, Gauge, Histogram

from troupe_contracts.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    PermissionDenied,
    ServiceError,
    Unauthenticated,
    Unimplemented,
)
from troupe_contracts.guard import OPEN, Guard
from troupe_contracts.log import get_logger, metadata_to_ids, new_trace

UNARY_SECONDS: Final = 600.0
IDLE_SECONDS: Final = 3600.0

CALLS: Final = Counter("troupe_rpc_calls_total", "Calls that ended.", ["service", "method", "code"])
SECONDS: Final = Histogram(
    "troupe_rpc_seconds",
    "Seconds from a call's start to its end.",
    ["service", "method", "code"],
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000),
)
IN_FLIGHT: Final = Gauge("troupe_rpc_in_flight", "Calls under way.", ["service", "method"])

# A string: gRPC's class takes type arguments in its stubs only.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
MaybeHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
_CODE_NAMES: Final = {code.value[0]: code.name for code in grpc.StatusCode}
_log = get_logger()


@dataclass(frozen=True, slots=True)
class CallLimits:
    """How long calls may take, in seconds."""

    unary: float = UNARY_SECONDS
    """A unary call without a deadline of its own."""
    idle: float = IDLE_SECONDS
    """A stream on which nothing moves."""


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every method of every service of a server."""

    def __init__(self, limits: CallLimits, guard: Guard = OPEN) -> None:
        self._limits = limits
        self._guard = guard

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[MaybeHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> MaybeHandler:
        handler = await continuation(handler_call_details)
        if handler is None:  # no such method: gRPC answers UNIMPLEMENTED
            return handler
        return _wrapped(handler, _Call(handler_call_details.method, self._limits, self._guard))


class _Call:
    """One method of a server, and what surrounds each call of it."""

    def __init__(self, method: str, limits: CallLimits, guard: Guard) -> None:
        _, self.service, self.name = method.split("/", 2)
        self.guard = guard
        self.unary_seconds = limits.unary
        # Watching health for days without a change is what health is for.
        self.idle_seconds = limits.idle if self.service.startswith("troupe.") else None

    @contextlib.asynccontextmanager
    async def around(self, context: Context) -> AsyncIterator[None]:
        """Ids, access, errors and metrics."""
        metadata = dict(context.invocation_metadata() or ())
        structlog.contextvars.bind_contextvars(**{"trace": new_trace()} | metadata_to_ids(metadata))
        started = time.perf_counter()
        code = "OK"
        IN_FLIGHT.labels(self.service, self.name).inc()
        try:
            self.admit(context, metadata)
            yield
            code = _code_name(context)
        except grpc.aio.AbortError:
            code = _code_name(context)
            raise
        except (asyncio.CancelledError, GeneratorExit):
            code = grpc.StatusCode.CANCELLED.name
            raise
        except ServiceError as error:
            code = error.code.name
            await _abort(context, error)
        except Exception:
            # The one place that must catch everything: the client gets an id, the log gets the rest.
            code = grpc.StatusCode.INTERNAL.name
            error_id = uuid.uuid4().hex[:12]
            rpc = f"{self.service}/{self.name}"
            _log.exception("call failed", rpc=rpc, error_id=error_id)
            await _abort(context, Internal(f"{rpc} failed; the service's log has the cause as error_id {error_id}"))
        finally:
            IN_FLIGHT.labels(self.service, self.name).dec()
            labels = (self.service, self.name, code)
            CALLS.labels(*labels).inc()
            SECONDS.labels(*labels).observe(time.perf_counter() - started)

    def admit(self, context: Context, metadata: Mapping[str, str | bytes]) -> None:
        """Returns if the caller may call this."""
        shown = metadata.get("authorization")
        names = (context.auth_context() or {}).get("peer_uri", ())
        try:
            self.guard.admit(
                f"{self.service}/{self.name}",
                shown if isinstance(shown, str) else None,
                (name.decode(errors="replace") for name in names),
            )
        except (Unauthenticated, PermissionDenied) as error:
            _log.warning("refused a call", rpc=f"{self.service}/{self.name}", peer=context.peer(), why=error.message)
            raise

    @contextlib.asynccontextmanager
    async def within_deadline(self, context: Context) -> AsyncIterator[None]:
        """Ends a unary call that the client gave no deadline; gRPC itself enforces the client's."""
        if context.time_remaining() is not None:
            yield
            return
        try:
            async with asyncio.timeout(self.unary_seconds) as limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineExceeded(
                f"{self.name} took longer than {self.unary_seconds:g} s, "
                "the limit of a call without a deadline; set a deadline to wait longer"
            ) from None

    @contextlib.asynccontextmanager
    async def while_moving(self) -> AsyncIterator[Callable[[], None]]:
        """Ends a stream on which nothing moves; yields what is to be called at each message, in or out."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.idle_seconds) as limit:

                def moved() -> None:
                    if self.idle_seconds is not None:
                        limit.reschedule(loop.time() + self.idle_seconds)

                yield moved
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineExceeded(
                f"no message on the stream {self.name} for {self.idle_seconds:g} s; call again from the last event"
            ) from None


def _wrapped(handler: Handler, call: _Call) -> Handler:
    method = handler.unary_unary or handler.stream_unary or handler.unary_stream or handler.stream_stream
    make: Callable[..., Handler]
    if handler.response_streaming:
        make, behaviour = grpc.stream_stream_rpc_method_handler, _stream(method, call, handler.request_streaming)
    else:
        make, behaviour = grpc.stream_unary_rpc_method_handler, _unary(method, call, handler.request_streaming)
    return make(behaviour, handler.request_deserializer, handler.response_serializer)


def _unary(method: Any, call: _Call, request_streaming: bool) -> Callable[[Any, Context], Awaitable[Any]]:
    async def unary(messages: AsyncIterator[Any], context: Context) -> Any:
        async with call.around(context), call.within_deadline(context):
            request = _parsed(messages) if request_streaming else await _only(messages)
            return await method(request, context)

    return unary if inspect.iscoroutinefunction(method) else _unimplemented(call)


def _stream(method: Any, call: _Call, request_streaming: bool) -> Callable[[Any, Context], Any]:
    async def generated(messages: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        async with call.around(context), call.while_moving() as moved:
            request = _parsed(messages, moved) if request_streaming else await _only(messages)
            async with contextlib.aclosing(method(request, context)) as responses:
                async for response in responses:
                    yield response
                    moved()

    async def written(messages: AsyncIterator[Any], context: Context) -> None:
        async with call.around(context), call.while_moving() as moved:
            await method(_parsed(messages, moved) if request_streaming else await _only(messages), context)

    if inspect.isasyncgenfunction(method):
        return generated
    return written if inspect.iscoroutinefunction(method) else _unimplemented(call)


def _unimplemented(call: _Call) -> Callable[[Any, Context], Awaitable[Any]]:
    """For a method that the servicer left to its generated base class, which is a plain function."""

    async def refuse(_messages: Any, context: Context) -> Any:
        async with call.around(context):
            raise Unimplemented(f"{call.service}/{call.name} is not served here (no `async def` for it)")

    return refuse


async def _parsed(messages: AsyncIterator[Any], moved: Callable[[], None] = lambda: None) -> AsyncGenerator[Any, None]:
    """The messages of a stream, with `moved` called at each.

    Raises:
        InvalidArgument: one cannot be parsed.
    """
    try:
        async for message in messages:
            moved()
            yield message
    except DecodeError as error:
        raise InvalidArgument("request", f"is not the message that this call takes: {error}") from error


async def _only(messages: AsyncIterator[Any]) -> Any:
    """The request of a call that has one.

    Raises:
        InvalidArgument: it cannot be parsed, or never came.
    """
    async with contextlib.aclosing(_parsed(messages)) as parsed:
        async for message in parsed:
            return message
    raise InvalidArgument("request", "is missing: the call ended without one")


async def _abort(context: Context, error: ServiceError) -> NoReturn:
    await context.abort(error.code, error.message, error.trailers())


def _code_name(context: Context) -> str:
    code = context.code()
    return code.name if isinstance(code, grpc.StatusCode) else _CODE_NAMES.get(code or 0, "UNKNOWN")
