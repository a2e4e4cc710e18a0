"""Every RPC of the contracts, called without knowing what it means."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection_pb2
from troupe_contracts.access import Role

PROTOS = Path(__file__).parents[4] / "proto" / "troupe" / "v1"
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
REFLECTION = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
# Those that a credential can have.
ROLES = [role for role in Role if role is not Role.ANONYMOUS]
# What each process of a deployment serves, beside health and reflection.
SERVED = {
    "orchestrator": ("Training", "Evaluation", "Solver"),
    "designer": ("Designer", "Policy"),
    "executor": ("Policy",),
    "learner": ("Learner", "Gang"),
    "sandbox": ("Sandbox",),
}


@dataclass(frozen=True)
class Rpc:
    """One method of a service."""

    service: str
    method: str
    request_streaming: bool
    response_streaming: bool

    @property
    def name(self) -> str:
        return f"{self.service}/{self.method}"


def contracts() -> dict[str, ServiceDescriptor]:
    """Every service of every file in proto/troupe/v1, by its short name."""
    modules = [importlib.import_module(f"troupe.v1.{path.stem}_pb2") for path in sorted(PROTOS.glob("*.proto"))]
    return {name: service for module in modules for name, service in module.DESCRIPTOR.services_by_name.items()}


def rpcs_of(service: ServiceDescriptor) -> list[Rpc]:
    """Its methods."""
    return [
        Rpc(service.full_name, method.name, method.client_streaming, method.server_streaming)
        for method in service.methods
    ]


def rpcs_at(process: str) -> list[Rpc]:
    """Everything that can be called at a process."""
    services = [*(contracts()[name] for name in SERVED[process]), HEALTH, REFLECTION]
    return [rpc for service in services for rpc in rpcs_of(service)]


async def outcome(channel: grpc.aio.Channel, rpc: Rpc, message: bytes | None = b"") -> grpc.StatusCode:
    """The status of a call with one message, or with none that ends only when the server ends it.

    A stream that answers counts as OK.
    """
    while True:
        try:
            return await _called(channel, rpc, message)
        except grpc.aio.AioRpcError as error:
            # grpcio's own client, in some of the calls that end while it writes: the server's status is lost.
            if error.details() != "Internal error from Core":
                return error.code()


async def _called(channel: grpc.aio.Channel, rpc: Rpc, message: bytes | None) -> grpc.StatusCode:
    kinds = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }
    multicallable = kinds[rpc.request_streaming, rpc.response_streaming](
        f"/{rpc.name}", request_serializer=bytes, response_deserializer=bytes
    )
    call = multicallable(_messages(message) if rpc.request_streaming else message, timeout=30)
    if rpc.response_streaming:
        if await call.read() is not grpc.aio.EOF:
            call.cancel()
            return grpc.StatusCode.OK
    else:
        await call
    code: grpc.StatusCode = await call.code()
    return code


async def _messages(message: bytes | None) -> AsyncIterator[bytes]:
    if message is None:
        await asyncio.Event().wait()
    else:
        yield message
