"""The channel that every client uses.

`connect` gives a channel with the limits of `wire`, retries declared in the service config, a default
deadline on unary calls, and the bound ids (`log.bind`) as metadata on every call. Streams get no deadline:
keepalive ends those whose peer is gone. A channel shows the credentials that it is given, and none by itself
(`identity`); where their files change, the next call shows the new ones.

Retries are declared for calls that only read, on UNAVAILABLE only. `Policy.Generate` is not among them: it is
stateless, but a generation that was lost may be running still, and the caller knows other replicas; gRPC's
own transparent retry of a call that never reached a server applies to it as to all. A mutating call is never
retried here; those that are idempotent by contract (TrainStep, SubmitBatch, CreateRun) are called again by
whoever owns the operation.
"""

import asyncio
import json
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

import grpc

from troupe_contracts.identity import NOBODY, Certificates, Identity
from troupe_contracts.log import ids_to_metadata
from troupe_contracts.wire import CHANNEL_OPTIONS

DEFAULT_DEADLINE_SECONDS: Final = 60.0

READ_ONLY_CALLS: Final = (
    ("grpc.health.v1.Health", "Check"),
    ("troupe.v1.Policy", "GetPolicy"),
    ("troupe.v1.Sandbox", "GetIsolation"),
    ("troupe.v1.Learner", "GetLearner"),
    ("troupe.v1.Learner", "Score"),
    ("troupe.v1.Training", "GetRun"),
    ("troupe.v1.Training", "ListRuns"),
    ("troupe.v1.Training", "GetExecution"),
    ("troupe.v1.Evaluation", "GetEvalJob"),
    ("troupe.v1.Evaluation", "ListEvalJobs"),
    ("troupe.v1.Evaluation", "ListEvalItems"),
)
SERVICE_CONFIG: Final = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{"service": service, "method": method} for service, method in READ_ONLY_CALLS],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 3,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)


def connect(
    target: str, identity: Identity = NOBODY, default_deadline: float = DEFAULT_DEADLINE_SECONDS
) -> grpc.aio.Channel:
    """A channel to `target` ("host:port"); connects at the first call. Close it, or use it with `async with`.

    Args:
        identity: what to show there; `own()` where the program's own settings name the target.
        default_deadline: seconds for a unary call that names no `timeout` of its own.
    """
    return _Channel(target, identity, default_deadline)


def _open(target: str, identity: Identity, certificates: Certificates | None) -> grpc.aio.Channel:
    options: list[tuple[str, int | str]] = [*CHANNEL_OPTIONS, ("grpc.service_config", SERVICE_CONFIG)]
    if certificates is None:
        return grpc.aio.insecure_channel(target, options=options)
    if identity.server_name is not None:
        options.append(("grpc.ssl_target_name_override", identity.server_name))
    credentials = grpc.ssl_channel_credentials(certificates.authority, certificates.key, certificates.certificate)
    return grpc.aio.secure_channel(target, credentials, options=options)


class _Channel(grpc.aio.Channel):
    """Adds metadata and deadline to each call and hands it on, to a channel with the certificates of now.

    Not a chain of client interceptors: those wrap the call objects of streams and pass every message through
    a queue.
    """

    def __init__(self, target: str, identity: Identity, default_deadline: float) -> None:
        self._target = target
        self._identity = identity
        self._default_deadline = default_deadline
        self._certificates = self._certificates_now()
        self._inner = _open(target, identity, self._certificates)
        self._before: list[grpc.aio.Channel] = []
        """With certificates that have changed since: what was called on them goes on. They are rare."""

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._with_context(lambda inner: inner.unary_unary(*args, **kwargs), self._default_deadline)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._with_context(lambda inner: inner.stream_unary(*args, **kwargs), self._default_deadline)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._with_context(lambda inner: inner.unary_stream(*args, **kwargs), None)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._with_context(lambda inner: inner.stream_stream(*args, **kwargs), None)

    async def close(self, grace: float | None = None) -> None:
        await asyncio.gather(*(channel.close(grace) for channel in (self._inner, *self._before)))

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._now().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._now().wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._now().channel_ready()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self.close()

    def _certificates_now(self) -> Certificates | None:
        followed = self._identity.certificates
        return None if followed is None else followed.value

    def _now(self) -> grpc.aio.Channel:
        certificates = self._certificates_now()
        if certificates is not self._certificates:
            self._before.append(self._inner)
            self._certificates, self._inner = certificates, _open(self._target, self._identity, certificates)
        return self._inner

    def _with_context(
        self, multicallable_of: Callable[[grpc.aio.Channel], Any], default_deadline: float | None
    ) -> Callable[..., Any]:
        inner = self._inner
        multicallable = multicallable_of(inner)

        def call(request: Any = None, *, timeout: float | None = None, metadata: Any = None, **kwargs: Any) -> Any:
            nonlocal inner, multicallable
            if (now := self._now()) is not inner:
                inner, multicallable = now, multicallable_of(now)
            carried = (*(metadata or ()), *ids_to_metadata(), *self._identity.metadata())
            deadline = default_deadline if timeout is None else timeout
            return multicallable(request, timeout=deadline, metadata=carried, **kwargs)

        return call
