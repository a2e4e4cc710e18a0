"""The server that every Python service runs.

`serve` is a service's whole main function: it starts one grpc.aio server with health, reflection and
/metrics, writes the ready file, and drains on SIGTERM or SIGINT: health goes NOT_SERVING, no new call is
taken, calls in flight get `drain_seconds`, what is left is cancelled. A second signal ends the grace. `start`
does the same without signals, for tests and for programs that run several servers.

Who may call is told by the settings (`server_credentials`, `guard`). `serve` also makes the settings' credentials this
process's own, for the calls that it makes (`identity`).
"""

import asyncio
import contextlib
import inspect
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

import grpc
from grpc_reflection.v1alpha import reflection

from troupe_contracts import log
from troupe_contracts.calls import CallInterceptor, CallLimits
from troupe_contracts.health import Health
from troupe_contracts.http_endpoint import open_http
from troupe_contracts.identity import Identity, assume, read_identity
from troupe_contracts.parent import die_with_parent
from troupe_contracts.redaction import redact_text
from troupe_contracts.server_credentials import read_server_credentials
from troupe_contracts.settings import ServiceSettings, split_address
from troupe_contracts.tokens import CredentialError
from troupe_contracts.wire import SERVER_OPTIONS

Register = Callable[[grpc.aio.Server], Awaitable[None] | None]
OnDrain = Callable[[], Awaitable[None] | None]

_WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_logger = log.get_logger()


class ListenError(OSError):
    """An address could not be bound."""


@dataclass(frozen=True)
class Running:
    """A server that serves. `target` and `metrics` are addresses with the port that was taken."""

    server: grpc.aio.Server
    health: Health
    target: str
    metrics: str
    close_metrics: Callable[[], None]

    async def drain(self, grace_seconds: float) -> None:
        """Takes no new calls, waits up to `grace_seconds` for those in flight, cancels the rest."""
        await self.health.close()
        await self.server.stop(grace_seconds)
        await asyncio.to_thread(self.close_metrics)


async def start(
    settings: ServiceSettings,
    register: Register,
    service_names: Sequence[str],
    *,
    health: Health | None = None,
    limits: CallLimits | None = None,
) -> Running:
    """Starts a server on `settings.listen`; `register` adds the servicers, and may take as long as it needs.

    Raises:
        ListenError: an address is taken or not ours.
        CredentialError: a file with credentials cannot be used.
    """
    health = health or Health()
    credentials = await asyncio.to_thread(read_server_credentials, settings)
    interceptor = CallInterceptor(limits or CallLimits(), credentials.guard)
    server = grpc.aio.server(interceptors=[interceptor], options=list(SERVER_OPTIONS))
    health.attach(server, service_names)
    names = (*service_names, "grpc.health.v1.Health", reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    registered = register(server)
    if inspect.isawaitable(registered):
        await registered
    try:
        if credentials.tls is None:
            port = server.add_insecure_port(settings.listen)
        else:
            port = server.add_secure_port(settings.listen, await asyncio.to_thread(credentials.tls.for_grpc))
    except RuntimeError as error:
        raise ListenError(f"TROUPE_LISTEN={settings.listen}: cannot listen there; take another port") from error
    metrics_host, metrics_port = split_address(settings.metrics)
    context = await asyncio.to_thread(credentials.tls.for_http) if credentials.tls is not None else None
    try:
        http = open_http(metrics_host, metrics_port, credentials.guard, health.is_published, context)
    except OSError as error:
        raise ListenError(f"TROUPE_METRICS={settings.metrics}: {error.strerror}; take another port") from error
    await server.start()
    await health.open()
    return Running(
        server,
        health,
        _reachable(split_address(settings.listen)[0], port),
        _reachable(metrics_host, http.port),
        http.close,
    )


async def serve(
    name: str,
    settings: ServiceSettings,
    register: Register,
    service_names: Sequence[str],
    on_drain: OnDrain | None = None,
    *,
    health: Health | None = None,
) -> None:
    """Runs a service until it is told to stop.

    Args:
        name: of the service, for logs and the ready file.
        register: adds the servicers; a signal that comes while it loads a model cancels it.
        service_names: full names of the services, such as "troupe.v1.Policy".
        on_drain: called once when draining begins, before calls in flight get their grace; also when
            `register` was cancelled.
        health: to be given when the service sets itself out of rotation.
    """
    if settings.die_with_parent:
        die_with_parent()
    log.configure(settings.log_level, settings.log_format, name)
    for warning in settings.warnings():
        _logger.warning(warning)
    try:
        assume(await asyncio.to_thread(_own_identity, settings))
    except CredentialError as error:
        _refuse(name, error)
    with _signals() as (stop, hurry):
        starting = asyncio.create_task(start(settings, register, service_names, health=health))
        await _first_of(starting, stop)
        if not starting.done():
            starting.cancel()
            await asyncio.wait([starting])
            _logger.info("stopped before it served")
            await _call(on_drain)
            return
        try:
            running = starting.result()
        except (ListenError, CredentialError) as error:
            _refuse(name, error)
        _logger.info("serving", target=running.target, metrics=running.metrics)
        with _ready_file(settings.ready_file, name, running):
            await stop.wait()
            _logger.info("draining", seconds=settings.drain_seconds)
            await running.health.close()
            await _call(on_drain)
            draining = asyncio.create_task(running.drain(settings.drain_seconds))
            await _first_of(draining, hurry)
            if not draining.done():
                await running.server.stop(None)
            await draining
        _logger.info("stopped")


def _own_identity(settings: ServiceSettings) -> Identity:
    return read_identity(
        settings.token_file, settings.tls_ca, settings.tls_cert, settings.tls_key, settings.tls_server_name
    )


def _refuse(name: str, error: Exception) -> NoReturn:
    print(redact_text(f"{name}: {error}"), file=sys.stderr)
    raise SystemExit(1) from None


async def _first_of(task: asyncio.Task[object], event: asyncio.Event) -> None:
    """Returns when the task is done or the event is set."""
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()


async def _call(callback: OnDrain | None) -> None:
    result = callback() if callback is not None else None
    if inspect.isawaitable(result):
        await result


@contextlib.contextmanager
def _signals() -> Iterator[tuple[asyncio.Event, asyncio.Event]]:
    """Events that the first, and the second, SIGTERM or SIGINT set."""
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, on_signal)
    try:
        yield stop, hurry
    finally:
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(signum)


@contextlib.contextmanager
def _ready_file(path: Path | None, name: str, running: Running) -> Iterator[None]:
    """Writes the ready file, whole or not at all, and removes it afterwards."""
    if path is None:
        yield
        return
    ready = {"target": running.target, "metrics": running.metrics, "pid": os.getpid(), "service": name}
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(ready) + "\n")
    draft.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _reachable(host: str, port: int) -> str:
    """An address that this machine can call, for a host that may be a wildcard."""
    reachable = _WILDCARDS.get(host, host)
    return f"[{reachable}]:{port}" if ":" in reachable else f"{reachable}:{port}"
