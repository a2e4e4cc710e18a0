"""The five services behind their guards: the sandbox itself, and real servers with idle servicers for the rest."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from troupe_contracts.server import start
from troupe_contracts.settings import ServiceSettings

from guarded.authority import Authority
from guarded.calls import SERVED, contracts, rpcs_of


@dataclass
class Address:
    """Where a server listens, and which calls have reached its servicers."""

    target: str
    metrics: str
    reached: list[str] = field(default_factory=list)


@contextlib.asynccontextmanager
async def idle(process: str, settings: Mapping[str, object]) -> AsyncIterator[Address]:
    """A server as the process runs it, whose servicers answer every call with nothing."""
    reached: list[str] = []
    names = [contracts()[name].full_name for name in SERVED[process]]

    def register(server: grpc.aio.Server) -> None:
        for name in SERVED[process]:
            service = contracts()[name]
            handlers = {rpc.method: _handler(rpc.name, rpc, reached) for rpc in rpcs_of(service)}
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))

    running = await start(ServiceSettings.model_validate(settings), register, names)
    try:
        yield Address(running.target, running.metrics, reached)
    finally:
        await running.drain(0)


def certificates(authority: Authority, name: str) -> dict[str, object]:
    """Settings of a server that takes the authority's certificates."""
    pair = authority.sign(f"server-{name}")
    return {"tls_cert": pair.certificate, "tls_key": pair.key, "tls_ca": authority.certificate}


def _handler(name: str, rpc: Any, reached: list[str]) -> Any:
    async def unary(request: Any, context: Any) -> bytes:
        reached.append(name)
        return b""

    async def stream(request: Any, context: Any) -> AsyncIterator[bytes]:
        reached.append(name)
        for nothing in ():
            yield nothing

    makers = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    return makers[rpc.request_streaming, rpc.response_streaming](stream if rpc.response_streaming else unary)


@contextlib.contextmanager
def sandbox(folder: Path, *options: object, log: str = "info") -> Iterator[Address]:
    """The sandbox as a process; its log is `folder/log`."""
    folder.mkdir(parents=True, exist_ok=True)
    ready = folder / "ready.json"
    command = [sys.executable, "-m", "troupe_sandbox", "--listen", "127.0.0.1:0", "--ready-file", str(ready)]
    command += ["--workflow-slots", "1", "--test-slots", "1", "--drain-seconds", "0", "--die-with-parent"]
    command += ["--log", log, "--work-dir", str(folder), *map(str, options)]
    with (folder / "log").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        give_up = time.monotonic() + 60
        while not ready.exists():
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < give_up, "the sandbox does not serve"
            time.sleep(0.02)
        told = json.loads(ready.read_text())
        yield Address(told["target"], told["metrics"])
    finally:
        process.terminate()
        process.wait(30)
