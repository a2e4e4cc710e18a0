import argparse
import asyncio
import os
from pathlib import Path
from typing import Any

import grpc
from troupe.v1 import sandbox_pb2, sandbox_pb2_grpc
from troupe_contracts.server import serve
from troupe_contracts.settings import ServiceSettings


class Sandbox(sandbox_pb2_grpc.SandboxServicer):
    async def GetIsolation(self, request: sandbox_pb2.GetIsolationRequest, context: Any) -> sandbox_pb2.IsolationReport:
        return sandbox_pb2.IsolationReport(
            profile=options.profile,
            layers=[
                sandbox_pb2.Layer(name="seccomp", state=sandbox_pb2.LAYER_STATE_ACTIVE),
                sandbox_pb2.Layer(name="cgroup", state=sandbox_pb2.LAYER_STATE_UNAVAILABLE),
            ],
            workflow_slots=options.workflow_slots,
            test_slots=options.test_slots,
        )


async def end_with(file: Path) -> None:
    while not file.exists():
        await asyncio.sleep(0.05)
    os._exit(7)


ending: list[asyncio.Task[None]] = []


def register(server: grpc.aio.Server) -> None:
    if "STAND_IN_ENDS_WITH" in os.environ:
        ending.append(asyncio.create_task(end_with(Path(os.environ["STAND_IN_ENDS_WITH"]))))
    sandbox_pb2_grpc.add_SandboxServicer_to_server(Sandbox(), server)  # type: ignore[abstract]


parser = argparse.ArgumentParser()
parser.add_argument("--listen", required=True)
parser.add_argument("--metrics", required=True)
parser.add_argument("--ready-file", required=True, type=Path)
parser.add_argument("--drain-seconds", required=True, type=float)
parser.add_argument("--die-with-parent", action="store_true", required=True)
parser.add_argument("--workflow-slots", required=True, type=int)
parser.add_argument("--test-slots", required=True, type=int)
parser.add_argument("--profile", required=True)
parser.add_argument("--tokens", required=True, type=Path)
options = parser.parse_args()
settings = ServiceSettings(
    listen=options.listen,
    metrics=options.metrics,
    ready_file=options.ready_file,
    die_with_parent=options.die_with_parent,
    drain_seconds=options.drain_seconds,
    tokens=options.tokens,
)
asyncio.run(serve("sandbox", settings, register, ["troupe.v1.Sandbox"]))
