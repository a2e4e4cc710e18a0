"""Loads that a replica accepts or not by what its engine scores, with a stand-in for the engine and real staged files."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from prometheus_client import REGISTRY
from safetensors.numpy import save_file
from troupe.v1 import common_pb2, policy_pb2
from troupe_contracts.errors import DataLoss, Unavailable
from troupe_contracts.health import Health
from troupe_inference.engines.base import EngineInfo, Tensor
from troupe_inference.transcript import Version
from troupe_inference.weights.updates import UpdateTarget, WeightUpdates

FENCE = common_pb2.Fence(store_id="store", token=1)
PROBE = (1, 2, 3, 4)
ROUNDING = 1e-6


class StandInEngine:
    """Scores every token with the one value that it holds, off by rounding; `deaf`: what it loads changes nothing."""

    info = EngineInfo(description="stand-in", dtype="float32", context_length=64, vocabulary_size=64, capacity=1)

    def __init__(self) -> None:
        self.value = -2.0
        self.deaf = False

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return [[self.value + ROUNDING] * (len(sequence) - 1) for sequence in sequences]

    async def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        if not self.deaf:
            self.value = float(np.frombuffer(tensors["value"].content, np.float32)[0])

    async def pause(self, grace_seconds: float) -> None: ...

    async def resume(self) -> None: ...


class Replica:
    """A replica of the stand-in, and updates to weights of one value from a store."""

    def __init__(self, folder: Path) -> None:
        self.engine = StandInEngine()
        target = UpdateTarget("policy", "replica", {"value": (1,)}, False)
        self.updates = WeightUpdates(target, self.engine, Health(), Version("first", 0), pause_seconds=0)
        self._folder = folder
        self._numbers, self._names = itertools.count(1), itertools.count(1)

    async def begin(self, value: float, name: str, token: int = FENCE.token) -> common_pb2.Fence:
        number = next(self._numbers)
        array = np.array([value], np.float32)
        folder = self._folder / str(number)
        folder.mkdir()
        save_file({"value": array}, folder / "model.safetensors")
        tensor = policy_pb2.TensorSpec(
            name="value", shape=[1], dtype="F32", sha256=hashlib.sha256(array.tobytes()).digest(), byte_size=4
        )
        fence = common_pb2.Fence(store_id=FENCE.store_id, token=token)
        await self.updates.begin(
            policy_pb2.BeginUpdateRequest(
                fence=fence,
                update_id=name,
                replica_id="replica",
                manifest=policy_pb2.WeightManifest(
                    policy_id="policy",
                    version=common_pb2.PolicyVersion(lineage="first", number=number),
                    tensors=[tensor],
                ),
                source=policy_pb2.WeightSource(store_uri=str(folder)),
            )
        )
        return fence

    async def stage(self, name: str, fence: common_pb2.Fence = FENCE) -> int:
        request = policy_pb2.StageWeightsRequest(fence=fence, update_id=name)
        return (await self.updates.stage(request)).staged_bytes

    async def commit(
        self, value: float, name: str, fence: common_pb2.Fence = FENCE, bound: float = 0.05
    ) -> policy_pb2.CommitUpdateResponse:
        probe = policy_pb2.Probe(token_ids=PROBE, log_probs=[value] * (len(PROBE) - 1))
        return await self.updates.commit(
            policy_pb2.CommitUpdateRequest(fence=fence, update_id=name, probes=[probe], probe_bound=bound)
        )

    async def update(self, value: float, bound: float = 0.05, name: str = "") -> policy_pb2.CommitUpdateResponse:
        name = name or f"update-{next(self._names)}"
        await self.begin(value, name)
        await self.stage(name)
        return await self.commit(value, name, bound=bound)

    @property
    def state(self) -> policy_pb2.UpdateState.ValueType:
        return self.updates.serving().state


@pytest.fixture
def replica(tmp_path: Path) -> Replica:
    return Replica(tmp_path)


async def test_a_load_tells_how_far_the_weights_before_were_off_and_what_it_was_held_to(replica: Replica) -> None:
    first = await replica.update(-2.5)
    assert first.probe_mean_error_before == pytest.approx(0.5, rel=1e-3)
    assert first.probe_mean_error == pytest.approx(ROUNDING, rel=0.5)
    assert first.probe_bound == pytest.approx(1e-3)
    second = await replica.update(-2.6)
    assert second.probe_bound == pytest.approx(1e-5), "it is known now how near right weights are"


async def test_the_version_that_is_served_is_exported_and_none_of_a_broken_replica(replica: Replica) -> None:
    def exported(name: str, **labels: str) -> float | None:
        return REGISTRY.get_sample_value(name, {"policy": "policy", **labels})

    assert exported("troupe_policy_version", lineage="first") == 0
    await replica.update(-2.5)
    assert exported("troupe_policy_version", lineage="first") == 1
    assert exported("troupe_policy_probe_error") == pytest.approx(ROUNDING, rel=0.5)
    replica.engine.deaf = True
    with pytest.raises(DataLoss):
        await replica.update(-3.0)
    assert exported("troupe_policy_version", lineage="first") is None


@pytest.mark.parametrize("calibrated", [False, True], ids=["first load", "later load"])
async def test_a_load_that_changes_nothing_breaks_the_replica_also_when_little_was_learned(
    replica: Replica, calibrated: bool
) -> None:
    if calibrated:
        await replica.update(-2.0)
    replica.engine.deaf = True
    for _ in range(2):  # a second try is no way round
        with pytest.raises(DataLoss, match=r"changed nothing|the bound is"):
            await replica.update(-2.0005)
        assert replica.state == policy_pb2.UPDATE_STATE_BROKEN
    replica.engine.deaf = False
    await replica.update(-2.0005)
    assert replica.state == policy_pb2.UPDATE_STATE_SERVING


async def test_the_same_weights_under_a_new_version_pass(replica: Replica) -> None:
    await replica.update(-2.5)
    again = await replica.update(-2.5)
    assert again.probe_mean_error_before == pytest.approx(again.probe_mean_error)


async def test_an_update_begun_again_under_its_name_is_loaded_again(replica: Replica) -> None:
    await replica.update(-2.5, name="again")
    await replica.update(-2.7, name="again")
    assert replica.engine.value == pytest.approx(-2.7)
    assert replica.updates.serving().version == Version("first", 2)
    assert replica.state == policy_pb2.UPDATE_STATE_SERVING


async def test_the_caller_may_allow_less(replica: Replica) -> None:
    with pytest.raises(DataLoss) as caught:
        await replica.update(-2.5, bound=1e-8)
    assert caught.value.code == grpc.StatusCode.DATA_LOSS


async def test_an_update_is_not_staged_by_the_last_byte_of_the_one_that_it_replaced(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An orchestrator took over the store in the very moment in which its predecessor's weights were all there."""
    pull = replica.updates._pull
    began: list[common_pb2.Fence] = []

    async def pulled(*arguments: Any) -> Any:
        tensors = await pull(*arguments)
        if not began:
            # Before whoever waits for these tensors has its turn; beginning waits for nothing.
            asyncio.get_running_loop().call_soon(lambda: began.append(_at_once(replica.begin(-2.6, "new", token=2))))
        return tensors

    monkeypatch.setattr(replica.updates, "_pull", pulled)
    await replica.begin(-2.5, "old")
    with pytest.raises(Unavailable, match="update old was aborted"):
        await replica.stage("old")
    (fence,) = began
    assert replica.state == policy_pb2.UPDATE_STATE_BEGUN
    assert await replica.stage("new", fence) == 4
    await replica.commit(-2.6, "new", fence)
    assert replica.engine.value == pytest.approx(-2.6)


def _at_once(call: Coroutine[Any, Any, common_pb2.Fence]) -> common_pb2.Fence:
    """The result of a call that waits for nothing."""
    with pytest.raises(StopIteration) as returned:
        call.send(None)
    return returned.value.value
