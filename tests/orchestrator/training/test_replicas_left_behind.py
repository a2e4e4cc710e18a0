"""A replica that a sync leaves behind is brought to the weights when it answers again. The engines are stand-ins."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata
from troupe.v1 import common_pb2, policy_pb2
from troupe_orchestrator.fleet import PolicyFleet, Replica
from troupe_orchestrator.training.weights import WeightSyncError, load_weights

NEW = common_pb2.PolicyVersion(lineage="a", number=1)
FENCE = common_pb2.Fence(store_id="store", token=1)


class Engine:
    """What `load_weights` asks of an engine."""

    def __init__(self) -> None:
        self.away = False
        self.version = common_pb2.PolicyVersion(lineage="a", number=0)

    async def GetPolicy(self, request: object, **_: object) -> policy_pb2.PolicyInfo:
        self._answers()
        return policy_pb2.PolicyInfo(
            policy_id="p", version=self.version, state=policy_pb2.UPDATE_STATE_SERVING, accepts_updates=True
        )

    async def BeginUpdate(self, request: policy_pb2.BeginUpdateRequest, **_: object) -> None:
        self._answers()

    async def StageWeights(self, request: object, **_: object) -> None:
        self._answers()

    async def AbortUpdate(self, request: object, **_: object) -> None:
        self._answers()

    async def CommitUpdate(self, request: object, **_: object) -> policy_pb2.CommitUpdateResponse:
        self._answers()
        self.version = NEW
        return policy_pb2.CommitUpdateResponse(version=NEW)

    def _answers(self) -> None:
        if self.away:
            raise AioRpcError(grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata(), "connection refused")


async def test_a_replica_that_an_earlier_sync_had_taken_out_comes_back_by_itself() -> None:
    engines = [Engine(), Engine()]
    replicas = [
        Replica(f"engine-{number}", cast("Any", each), cast("Any", None)) for number, each in enumerate(engines)
    ]
    fleet = PolicyFleet(replicas)
    await fleet.connect()
    manifest = policy_pb2.WeightManifest(policy_id="p", version=NEW)

    async def load() -> tuple[str, ...]:
        return (await load_weights(fleet, manifest, policy_pb2.WeightSource(), FENCE, [], 0.1)).failures

    for engine in engines:
        engine.away = True
    with pytest.raises(WeightSyncError):
        await load()
    assert fleet.serving() == []
    engines[0].away = False
    assert [failure.split(":")[0] for failure in await load()] == ["engine-1"]
    assert fleet.serving() == replicas[:1]
    engines[1].away = False
    async with asyncio.timeout(20):
        while fleet.serving() != replicas:
            await asyncio.sleep(0.01)
    assert engines[1].version == NEW
    await fleet.close()
