"""Who the replicas of a service are. Static here: the targets that the orchestrator was started with, a channel each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from troupe.v1 import policy_pb2, policy_pb2_grpc
from troupe_contracts.channel import connect


class NoReplicasError(RuntimeError):
    """A service has no replica that serves."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One process that serves `Policy`."""

    target: str
    stub: policy_pb2_grpc.PolicyAsyncStub


class PolicyFleet:
    """The replicas of one role's engine."""

    def __init__(self, targets: Sequence[str]) -> None:
        self._replicas = tuple(Replica(target, policy_pb2_grpc.PolicyStub(connect(target))) for target in targets)
        self._out_of_rotation: set[str] = set()

    def replicas(self) -> tuple[Replica, ...]:
        """All of them, serving or not."""
        return self._replicas

    def pick(self, key: str) -> policy_pb2_grpc.PolicyAsyncStub:
        """The replica for a key by rendezvous hash: turns of one execution share a prefix cache.

        Raises:
            NoReplicasError: none is in rotation.
        """
        return max(self._serving(), key=lambda replica: blake2b(f"{key}\x1f{replica.target}".encode()).digest()).stub

    def take_out(self, replica: Replica) -> None:
        """Give a replica no more work: its weights are not the current ones."""
        self._out_of_rotation.add(replica.target)

    def put_back(self, replica: Replica) -> None:
        """The replica has the current weights."""
        self._out_of_rotation.discard(replica.target)

    async def describe(self) -> list[policy_pb2.PolicyInfo]:
        """What each replica in rotation says of itself.

        Raises:
            NoReplicasError: none is in rotation.
        """
        serving = self._serving()
        return [await replica.stub.GetPolicy(policy_pb2.GetPolicyRequest()) for replica in serving]

    def _serving(self) -> list[Replica]:
        serving = [replica for replica in self._replicas if replica.target not in self._out_of_rotation]
        if not serving:
            raise NoReplicasError(f"none of {[replica.target for replica in self._replicas]} serves")
        return serving
