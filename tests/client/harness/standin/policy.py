"""Executor and designer: say what they serve; the executor can misbehave."""

import asyncio
import subprocess
import sys
import time
from multiprocessing.shared_memory import SharedMemory
from typing import Any, Literal

import grpc
from troupe.v1 import policy_pb2, policy_pb2_grpc
from troupe.v1.common_pb2 import PolicyVersion
from troupe_contracts.server import serve
from troupe_contracts.settings import ServiceSettings

# A child in a session of its own that ignores SIGTERM, as an engine's worker may.
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)


KEPT: list[SharedMemory] = []


class PolicySettings(ServiceSettings):
    """The settings of both roles that the supervisor wires."""

    engine: Literal["vllm", "remote", "openai"]
    policy_id: str
    replica_id: str
    model: str = ""
    remote_target: str = ""
    lineage: str = ""
    context_length: int = 0
    prompt: str = ""
    misbehave: Literal["", "exit", "hang", "never", "leave behind"] = ""


class Policy(policy_pb2_grpc.PolicyServicer):
    def __init__(self, settings: PolicySettings) -> None:
        self._settings = settings

    async def GetPolicy(self, request: policy_pb2.GetPolicyRequest, context: Any) -> policy_pb2.PolicyInfo:
        return policy_pb2.PolicyInfo(
            policy_id=self._settings.policy_id,
            replica_id=self._settings.replica_id,
            version=PolicyVersion(lineage="first", number=7),
            state=policy_pb2.UPDATE_STATE_SERVING,
            model=self._settings.model,
            owner=self._settings.remote_target,
            capacity=16,
            engine="stand-in engine",
        )


def main(name: str) -> None:
    settings = PolicySettings.load()
    _misbehave(settings.misbehave)

    async def register(server: grpc.aio.Server) -> None:
        if settings.misbehave == "never":
            await asyncio.sleep(600)
        policy_pb2_grpc.add_PolicyServicer_to_server(Policy(settings), server)  # type: ignore[abstract]

    async def run() -> None:
        await serve(name, settings, register, ["troupe.v1.Policy"])

    asyncio.run(run())


def _misbehave(how: str) -> None:
    if how == "exit":
        print("CUDA error: no device", file=sys.stderr)
        sys.exit(3)
    if how == "leave behind":
        print(f"leaves {_worker_and_memory()}", flush=True)
    if how == "hang":
        # As an engine's start does: a worker, shared memory, and a main thread that sees no signal.
        print(f"hangs with {_worker_and_memory()}", flush=True)
        import signal

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)


def _worker_and_memory() -> str:
    """Starts a worker without our environment, makes a segment, and gives the segment's name."""
    worker = subprocess.Popen([sys.executable, "-c", STUBBORN], start_new_session=True, stdout=subprocess.PIPE, env={})
    assert worker.stdout is not None
    worker.stdout.readline()
    KEPT.append(SharedMemory(create=True, size=1 << 20))
    return KEPT[0].name
