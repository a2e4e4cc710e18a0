"""The executor service: one policy, one servicer."""

import grpc
from troupe.v1 import policy_pb2_grpc
from troupe_contracts.health import Health
from troupe_contracts.server import serve
from troupe_inference.policy_service import SERVICE_NAME, PolicyService
from troupe_inference.policy_start import RunningPolicy, start_policy

from troupe_executor.settings import ExecutorSettings


async def run(settings: ExecutorSettings) -> None:
    """Serves until told to stop."""
    health = Health()
    running: list[RunningPolicy] = []

    async def register(server: grpc.aio.Server) -> None:
        started = await start_policy(settings, health)
        running.append(started)
        service = PolicyService(started.policy, started.updates, started.owner)
        policy_pb2_grpc.add_PolicyServicer_to_server(service, server)

    await serve("executor", settings, register, [SERVICE_NAME], health=health)
    for each in running:
        await each.close()
