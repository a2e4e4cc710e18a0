"""A policy that another Policy service serves: every turn is forwarded, errors come back as they are."""

import grpc
from troupe.v1 import policy_pb2, policy_pb2_grpc
from troupe_contracts.channel import connect
from troupe_contracts.errors import Relayed
from troupe_contracts.identity import own

from troupe_inference.turn_wire import reply_from_proto, turn_to_proto
from troupe_inference.turns import Reply, Turn


class RemotePolicy:
    """Implements `turns.Policy`.

    Args:
        target: host:port of the service that holds the weights.
        replica_id: of this forwarder, which has an identity of its own.
        turn_seconds: deadline of one generation.
    """

    def __init__(self, target: str, replica_id: str, turn_seconds: float) -> None:
        self.target = target
        self._replica_id = replica_id
        self._turn_seconds = turn_seconds
        self._channel = connect(target, own())
        self._stub = policy_pb2_grpc.PolicyStub(self._channel)

    async def continue_turn(self, turn: Turn) -> Reply:
        try:
            response = await self._stub.Generate(turn_to_proto(turn), timeout=self._turn_seconds)
        except grpc.aio.AioRpcError as error:
            raise Relayed(error, f"policy at {self.target}") from error
        return reply_from_proto(response)

    async def describe(self) -> policy_pb2.PolicyInfo:
        try:
            served: policy_pb2.PolicyInfo = await self._stub.GetPolicy(policy_pb2.GetPolicyRequest())
        except grpc.aio.AioRpcError as error:
            raise Relayed(error, f"policy at {self.target}") from error
        served.replica_id = self._replica_id
        served.accepts_updates = False
        served.owner = served.owner or self.target
        return served

    async def close(self) -> None:
        await self._channel.close()
