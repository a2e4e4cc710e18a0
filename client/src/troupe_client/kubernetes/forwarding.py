"""A port on loopback that leads to a pod of a Service, through the API server: `kubectl port-forward` in this process.

Each connection is led to a pod that is ready when it is made. So a client whose pod is replaced loses its connection, makes
another, and is led to the new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Final

from kubernetes.client.exceptions import ApiException
from kubernetes.stream.ws_client import portforward_call
from troupe_kubernetes.api import Api, ApiError, ApiUnreachableError
from troupe_kubernetes.endpoints import SERVICE_LABEL, Endpoint, endpoints
from troupe_kubernetes.pods import COMPONENT_LABEL, reasons

from troupe_client.kubernetes.place import NoDeploymentError

_PORT_NAME: Final = "grpc"
_CHUNK: Final = 2**16
Finding = Callable[[], tuple[str, int] | None]
"""A pod and a port of it; None while there is none. Blocks."""


@contextlib.asynccontextmanager
async def forwarded_service(api: Api, service: str) -> AsyncIterator[str]:
    """host:port that leads to a ready pod of a Service, for as long as the block runs.

    Raises:
        NoDeploymentError: there is no such Service, or nobody serves behind it now.
        ApiError, ApiUnreachableError: the API server refuses, or does not answer.
    """
    if await asyncio.to_thread(_ready_pod, api, service) is None:
        raise NoDeploymentError(await asyncio.to_thread(_why_nobody, api, service))

    def find() -> tuple[str, int] | None:
        found = _ready_pod(api, service)
        return None if found is None else (found.pod, int(found.target.rpartition(":")[2]))

    async with _listening(api, find) as target:
        yield target


@contextlib.asynccontextmanager
async def forwarded_pod(api: Api, pod: str, port: int) -> AsyncIterator[str]:
    """host:port that leads to one pod, for as long as the block runs."""
    async with _listening(api, lambda: (pod, port)) as target:
        yield target


@contextlib.asynccontextmanager
async def _listening(api: Api, find: Finding) -> AsyncIterator[str]:
    led: set[asyncio.Task[None]] = set()

    def lead(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(_lead(api, find, reader, writer), name="port-forward")
        led.add(task)
        task.add_done_callback(led.discard)

    server = await asyncio.start_server(lead, "127.0.0.1", 0)
    try:
        host, port = server.sockets[0].getsockname()[:2]
        yield f"{host}:{port}"
    finally:
        server.close()
        for task in led:
            task.cancel()
        await asyncio.gather(*led, return_exceptions=True)


async def _lead(api: Api, find: Finding, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry one connection to a pod and back, until one side ends it. With nobody there it ends at once: who called
    calls again.
    """
    try:
        there = await asyncio.to_thread(_connect, api, find)
        if there is None:
            return
        from_pod, to_pod = await asyncio.open_unix_connection(sock=there)
        try:
            carrying = [asyncio.create_task(_carry(reader, to_pod)), asyncio.create_task(_carry(from_pod, writer))]
            await asyncio.wait(carrying, return_when=asyncio.FIRST_COMPLETED)
            for task in carrying:
                task.cancel()
            await asyncio.gather(*carrying, return_exceptions=True)
        finally:
            to_pod.close()
    finally:
        writer.close()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(_CHUNK):
            writer.write(chunk)
            await writer.drain()


def _connect(api: Api, find: Finding) -> socket.socket | None:
    """A socket that ends in a pod; None where there is none. Blocks."""
    try:
        found = find()
        if found is None:
            return None
        pod, port = found
        url = f"{api.server}{api.namespaced('v1', 'pods', pod)}/portforward"
        headers = {name.lower(): value for name, value in api.headers().items()}
        forward = portforward_call(
            api.client.configuration, "GET", url, query_params=[("ports", str(port))], headers=headers
        )
    except (ApiError, ApiUnreachableError, ApiException):
        return None
    # Its own sockets are wrapped; asyncio wants one of the standard library's.
    return socket.socket(fileno=forward.socket(port).detach())


def _ready_pod(api: Api, service: str) -> Endpoint | None:
    path = api.namespaced("discovery.k8s.io/v1", "endpointslices")
    listed = api.get(path, {"labelSelector": f"{SERVICE_LABEL}={service}"})["items"]
    return next((each for each in endpoints(listed, _PORT_NAME).values() if each.ready), None)


def _why_nobody(api: Api, service: str) -> str:
    """What is in the way, as far as it can be seen."""
    where = f"namespace {api.namespace} of {api.server}"
    try:
        api.get(api.namespaced("v1", "services", service))
    except ApiError as error:
        if error.status != 404:
            raise
        return f"{where} has no Service {service}: install with `kubectl apply -k`, or name another with --namespace"
    pods = api.get(api.namespaced("v1", "pods"), {"labelSelector": f"{COMPONENT_LABEL}={service}"})["items"]
    told = [reason.text for reason in reasons(pods).values()] or [f"{len(pods)} pods, none of them ready"]
    return f"nobody serves behind Service {service} in {where}: {'; '.join(told)}; see `troupe status`"
