"""The Policy service: protobuf on the outside, a `turns.Policy` and weight updates within."""

from typing import NoReturn

import grpc
from troupe.v1 import policy_pb2, policy_pb2_grpc
from troupe_contracts.errors import FailedPrecondition

from troupe_inference.turn_wire import reply_to_proto, turn_from_proto
from troupe_inference.turns import Policy
from troupe_inference.weights.updates import WeightUpdates

SERVICE_NAME = "troupe.v1.Policy"


class PolicyService(policy_pb2_grpc.PolicyServicer):
    """Serves one policy.

    Args:
        updates: None where the weights are held by another service.
        owner: where they are held then, for the text of the refusal.
    """

    def __init__(self, policy: Policy, updates: WeightUpdates | None, owner: str = "") -> None:
        self._policy = policy
        self._updates = updates
        self._owner = owner

    async def Generate(
        self,
        request: policy_pb2.GenerateRequest,
        context: grpc.aio.ServicerContext[policy_pb2.GenerateRequest, policy_pb2.GenerateResponse],
    ) -> policy_pb2.GenerateResponse:
        return reply_to_proto(await self._policy.continue_turn(turn_from_proto(request)))

    async def GetPolicy(
        self,
        request: policy_pb2.GetPolicyRequest,
        context: grpc.aio.ServicerContext[policy_pb2.GetPolicyRequest, policy_pb2.PolicyInfo],
    ) -> policy_pb2.PolicyInfo:
        return await self._policy.describe()

    async def BeginUpdate(
        self,
        request: policy_pb2.BeginUpdateRequest,
        context: grpc.aio.ServicerContext[policy_pb2.BeginUpdateRequest, policy_pb2.BeginUpdateResponse],
    ) -> policy_pb2.BeginUpdateResponse:
        return await (self._updates or self._refuse()).begin(request)

    async def StageWeights(
        self,
        request: policy_pb2.StageWeightsRequest,
        context: grpc.aio.ServicerContext[policy_pb2.StageWeightsRequest, policy_pb2.StageWeightsResponse],
    ) -> policy_pb2.StageWeightsResponse:
        return await (self._updates or self._refuse()).stage(request)

    async def CommitUpdate(
        self,
        request: policy_pb2.CommitUpdateRequest,
        context: grpc.aio.ServicerContext[policy_pb2.CommitUpdateRequest, policy_pb2.CommitUpdateResponse],
    ) -> policy_pb2.CommitUpdateResponse:
        return await (self._updates or self._refuse()).commit(request)

    async def AbortUpdate(
        self,
        request: policy_pb2.AbortUpdateRequest,
        context: grpc.aio.ServicerContext[policy_pb2.AbortUpdateRequest, policy_pb2.AbortUpdateResponse],
    ) -> policy_pb2.AbortUpdateResponse:
        return await (self._updates or self._refuse()).abort(request)

    def _refuse(self) -> NoReturn:
        raise FailedPrecondition(
            f"weights at {self._owner}", f"this service only forwards: send weight updates to {self._owner}"
        )
