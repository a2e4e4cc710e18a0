"""A replica that fails or is slow is left behind by a sync, and brought to the weights when it can be; with stand-ins."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata
from troupe.v1 import common_pb2, policy_pb2
from troupe_orchestrator.fleet import PolicyFleet, Replica
from troupe_orchestrator.rotation import NoReplicasError
from troupe_orchestrator.store.steps import StepRecord, StepState
from troupe_orchestrator.training import serving, weights
from troupe_orchestrator.training.policies import Policy
from troupe_orchestrator.training.serving import Serving
from troupe_orchestrator.training.weights import SyncReport, WeightSyncError, load_weights

NEW = common_pb2.PolicyVersion(lineage="a", number=1)
FENCE = common_pb2.Fence(store_id="store", token=1)


class Engine:
    """What `load_weights` asks of an engine."""

    def __init__(self) -> None:
        self.away = False
        self.stages = asyncio.Event()
        """Set: it stages at once. Else it waits for it."""
        self.stages.set()
        self.version = common_pb2.PolicyVersion(lineage="a", number=0)
        self.open: common_pb2.PolicyVersion | None = None

    async def GetPolicy(self, request: object, **_: object) -> policy_pb2.PolicyInfo:
        self._answers()
        return policy_pb2.PolicyInfo(
            policy_id="p", version=self.version, state=policy_pb2.UPDATE_STATE_SERVING, accepts_updates=True
        )

    async def BeginUpdate(self, request: policy_pb2.BeginUpdateRequest, **_: object) -> None:
        self._answers()
        if self.open not in (None, request.manifest.version):
            raise AioRpcError(grpc.StatusCode.FAILED_PRECONDITION, Metadata(), Metadata(), "another update is open")
        self.open = request.manifest.version

    async def StageWeights(self, request: object, **_: object) -> None:
        self._answers()
        await self.stages.wait()

    async def AbortUpdate(self, request: object, **_: object) -> None:
        self._answers()
        self.open = None

    async def CommitUpdate(self, request: object, **_: object) -> policy_pb2.CommitUpdateResponse:
        self._answers()
        assert self.open is not None
        self.version, self.open = self.open, None
        return policy_pb2.CommitUpdateResponse(version=self.version, probe_mean_error=0.01, probe_max_error=0.02)

    def _answers(self) -> None:
        if self.away:
            raise AioRpcError(grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata(), "connection refused")


def fleet_of(engines: list[Engine]) -> PolicyFleet:
    return PolicyFleet(
        [Replica(f"engine-{number}", cast("Any", each), cast("Any", None)) for number, each in enumerate(engines)]
    )


async def loaded(fleet: PolicyFleet, number: int) -> SyncReport:
    version = common_pb2.PolicyVersion(lineage="a", number=number)
    manifest = policy_pb2.WeightManifest(policy_id="p", version=version)
    return await load_weights(fleet, manifest, policy_pb2.WeightSource(), FENCE, [], 0.1)


async def load_into(fleet: PolicyFleet, number: int) -> tuple[str, ...]:
    """Load a version; why replicas were left behind."""
    return (await loaded(fleet, number)).failures


async def until_all_serve(fleet: PolicyFleet) -> None:
    async with asyncio.timeout(20):
        while fleet.serving() != list(fleet.replicas()):
            await asyncio.sleep(0.01)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A laggard has no half minute."""
    monkeypatch.setattr(weights, "_LEAST_PATIENCE_SECONDS", 0.1)


class Told:
    """Stands in for what a sync tells of beside the engines."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fleet: PolicyFleet) -> None:
        self.recorded: list[StepRecord] = []
        self.fence = FENCE
        monkeypatch.setattr(serving, "forget_loan", self._forget)
        monkeypatch.setattr(serving, "advance_step", self._advance)
        monkeypatch.setattr(serving, "sync_weights", lambda *_: loaded(fleet, 1))

    async def _forget(self, *_: object) -> None:
        pass

    async def _advance(self, database: object, record: StepRecord, state: object) -> None:
        self.recorded.append(record)


async def test_a_sync_has_not_succeeded_while_nobody_says_that_a_replica_is_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fleet = fleet_of([Engine()])
    told = Told(monkeypatch, fleet)
    policy = Policy("p", cast("Any", None), fleet, ("executor",))
    monkeypatch.setattr(Policy, "fixed_probes", [])
    engines = Serving({"p": policy}, cast("Any", told), cast("Any", None), 0.1)
    (replica,) = fleet.replicas()
    fleet.set_ready(replica, False)
    with pytest.raises(NoReplicasError):
        await engines.sync(policy, 1)
    fleet.set_ready(replica, True)
    await until_all_serve(fleet)
    await engines.sync(policy, 1)
    await engines.record(StepRecord("run", 1, StepState.TRAINED, ("task",), {}))
    # Of the load that nobody could be given work after.
    (step,) = told.recorded
    assert (step.metrics["probe_mean_error"], step.metrics["probe_max_error"]) == pytest.approx((0.01, 0.02))


async def test_a_load_of_what_is_loaded_tells_of_no_probe() -> None:
    fleet = fleet_of([Engine(), Engine()])
    await fleet.connect()
    first, again = await loaded(fleet, 1), await loaded(fleet, 1)
    assert first.probe_mean_error == pytest.approx(0.01)
    assert (again.probe_mean_error, again.probe_max_error, again.paused_seconds) == (None, None, 0.0)


@pytest.mark.usefixtures("impatient")
async def test_a_slow_replica_is_left_behind_and_has_the_weights_before_it_serves_again() -> None:
    engines = [Engine(), Engine(), Engine()]
    fleet = fleet_of(engines)
    await fleet.connect()
    engines[2].stages.clear()
    async with asyncio.timeout(20):
        (failure,) = await load_into(fleet, 1)
    assert failure.startswith("engine-2: ")
    assert [each.target for each in fleet.serving()] == ["engine-0", "engine-1"]
    engines[2].stages.set()
    await until_all_serve(fleet)
    assert engines[2].version == NEW
    await fleet.close()


@pytest.mark.usefixtures("impatient")
async def test_the_next_sync_does_not_wait_for_a_replica_that_is_still_being_brought_to_the_last() -> None:
    engines = [Engine(), Engine(), Engine()]
    fleet = fleet_of(engines)
    await fleet.connect()
    engines[2].stages.clear()
    async with asyncio.timeout(20):
        for number in (1, 2, 3):
            assert len(await load_into(fleet, number)) == 1
            while engines[2].open is None:  # it is being brought there, and hangs
                await asyncio.sleep(0.01)
    engines[2].stages.set()
    await until_all_serve(fleet)
    assert {each.version.number for each in engines} == {3}
    await fleet.close()


async def test_a_sync_waits_for_a_slow_replica_where_fewer_than_half_have_the_weights() -> None:
    engines = [Engine(), Engine(), Engine()]
    fleet = fleet_of(engines)
    await fleet.connect()
    for slow in engines[1:]:
        slow.stages.clear()
    loading = asyncio.create_task(load_into(fleet, 1))
    while engines[0].version != NEW:
        await asyncio.sleep(0.01)
    for slow in engines[1:]:
        slow.stages.set()
    assert await loading == ()
    await fleet.close()


async def test_a_replica_that_an_earlier_sync_had_taken_out_comes_back_by_itself() -> None:
    engines = [Engine(), Engine()]
    fleet = fleet_of(engines)
    replicas = list(fleet.replicas())
    await fleet.connect()

    async def load() -> tuple[str, ...]:
        return await load_into(fleet, 1)

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
