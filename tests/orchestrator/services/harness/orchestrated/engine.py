"""A replica that plays both roles, with weights of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import grpc
from troupe.v1 import designer_pb2_grpc, policy_pb2, policy_pb2_grpc
from troupe_contracts.server import Running, start
from troupe_contracts.settings import ServiceSettings

from orchestrated.models import StandInDesigner, StandInPolicy, Weights, right_unless_guessed


@dataclass
class Engine:
    """One, served."""

    policy: StandInPolicy
    running: Running
    versions: list[int] = field(default_factory=list)
    """With which each turn was played."""


async def start_engine(before_turn: Callable[[], Awaitable[object]]) -> Engine:
    """It has the weights that its image has."""
    policy = StandInPolicy(Weights())
    designer = StandInDesigner(policy.weights)

    def register(server: grpc.aio.Server) -> None:
        policy_pb2_grpc.add_PolicyServicer_to_server(policy, server)
        designer_pb2_grpc.add_DesignerServicer_to_server(designer, server)

    running = await start(ServiceSettings(), register, ["troupe.v1.Policy", "troupe.v1.Designer"])
    engine = Engine(policy, running)

    async def reply(request: policy_pb2.GenerateRequest) -> str:
        engine.versions.append(policy.weights.version.number)
        await before_turn()
        answer = right_unless_guessed(request)
        assert isinstance(answer, str)
        return answer

    policy.reply = reply
    return engine
