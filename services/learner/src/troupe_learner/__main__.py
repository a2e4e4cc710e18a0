"""The learner service: `python -m troupe_learner`, told by TROUPE_ environment variables (`settings`).

Serves once the gang of ranks is ready; this process never imports torch.
"""

import asyncio
import sys

import grpc
from troupe.v1 import learner_pb2_grpc
from troupe_contracts.health import Health
from troupe_contracts.server import serve

from troupe_learner.front import Front, StartFailed
from troupe_learner.lineages import Lineages
from troupe_learner.model_folder import BadModel, open_model
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
    front = Front(settings, model, folder, Lineages(folder.lineages), on_failed=lambda: health.set_serving(False))

    async def register(server: grpc.aio.Server) -> None:
        await front.open()
        learner_pb2_grpc.add_LearnerServicer_to_server(LearnerService(front), server)

    try:
        await serve("learner", settings, register, [SERVICE_NAME], front.close, health=health)
    finally:
        await front.close()


def main() -> None:
    settings = LearnerSettings.load()
    try:
        asyncio.run(run(settings))
    except (BadModel, FolderInUse, StartFailed) as error:
        print(f"learner: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
