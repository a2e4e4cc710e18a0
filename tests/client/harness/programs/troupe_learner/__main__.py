import asyncio
from pathlib import Path
from typing import Any

import grpc
from troupe.v1 import learner_pb2, learner_pb2_grpc
from troupe.v1.common_pb2 import PolicyVersion
from troupe_contracts.errors import NotFound
from troupe_contracts.server import serve
from troupe_contracts.settings import ServiceSettings


class LearnerSettings(ServiceSettings):
    model: str
    policy_id: str
    work_dir: Path
    engine: str
    ranks: int


class Learner(learner_pb2_grpc.LearnerServicer):
    async def GetLearner(self, request: learner_pb2.GetLearnerRequest, context: Any) -> learner_pb2.LearnerInfo:
        if request.policy_id != settings.policy_id:
            raise NotFound("policy", request.policy_id)
        return learner_pb2.LearnerInfo(
            policy_id=settings.policy_id,
            version=PolicyVersion(lineage="first", number=7),
            state=learner_pb2.GANG_STATE_READY,
            ranks=settings.ranks,
            engine=settings.engine,
        )


def register(server: grpc.aio.Server) -> None:
    learner_pb2_grpc.add_LearnerServicer_to_server(Learner(), server)  # type: ignore[abstract]


settings = LearnerSettings.load()
asyncio.run(serve("learner", settings, register, ["troupe.v1.Learner"]))
