"""The learner service: `python -m troupe_learner`, told by TROUPE_ environment variables (`settings`).

On node 0 the front, which serves once the gang of ranks is ready; on other nodes the gang agent. Neither imports torch.
"""

import asyncio
import sys

import grpc
from prometheus_client import REGISTRY
from troupe.v1 import learner_pb2_grpc
from troupe_contracts.health import Health
from troupe_contracts.server import serve

from troupe_learner import agent
from troupe_learner.agents import Agents
from troupe_learner.exported import LearnerCollector
from troupe_learner.fences import Fences
from troupe_learner.front import Front, StartFailed
from troupe_learner.lineages import Lineages
from troupe_learner.local_ranks import OneHost
from troupe_learner.membership import in_common
from troupe_learner.model_folder import BadModel, open_model
from troupe_learner.rank_plan import rank_plan, this_machine
from troupe_learner.service import SERVICE_NAME, LearnerService
from troupe_learner.settings import LearnerSettings
from troupe_learner.work_folder import FolderInUse, WorkFolder


async def run(settings: LearnerSettings) -> None:
    """Serves until told to stop.

    Raises:
        BadModel, FolderInUse, StartFailed: it cannot be served; the text says why.
    """
    model = await asyncio.to_thread(open_model, settings.model)
    folder = await asyncio.to_thread(WorkFolder.open, settings.work_dir)
    health = Health()
    plan = rank_plan(settings, model, folder.ranks)
    here = this_machine(settings, plan)
    agents = None
    if settings.nodes > 1:
        agents = Agents(settings, here, await asyncio.to_thread(in_common, settings, model))
    front = Front(
        settings,
        model,
        folder,
        Lineages(folder.lineages),
        plan,
        agents or OneHost(here),
        on_failed=lambda: health.set_serving(False),
    )

    fences = Fences(folder.fences, lambda: front.held_for)

    async def register(server: grpc.aio.Server) -> None:
        if agents is not None:
            await agents.open()
        await front.open()
        REGISTRY.register(LearnerCollector(front, folder.root))
        learner_pb2_grpc.add_LearnerServicer_to_server(LearnerService(front, fences), server)

    async def close() -> None:
        await front.close()
        if agents is not None:
            await agents.close()

    try:
        await serve("learner", settings, register, [SERVICE_NAME], close, health=health)
    finally:
        await close()


def main() -> None:
    settings = LearnerSettings.load()
    try:
        asyncio.run(agent.run(settings) if settings.node_rank else run(settings))
    except (BadModel, FolderInUse, StartFailed) as error:
        print(f"learner: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
