"""Which orchestrator the learner listens to: the newest of the store that has it, also after a restart."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from learning.client import Client, next_step, refused
from learning.process import launch, serving
from troupe.v1 import learner_pb2
from troupe.v1.common_pb2 import Fence
from troupe_contracts.errors import FailedPrecondition
from troupe_learner.fences import Fences

MakeSequences = Callable[..., list[learner_pb2.Sequence]]
CODE = grpc.StatusCode


async def test_a_learner_that_is_a_runs_is_changed_by_no_other_store(
    learner: Client, sequences: MakeSequences, tmp_path: Path
) -> None:
    step = await next_step(learner)
    await learner.train(step, sequences(3))
    before = await learner.get()
    other = Fence(store_id="other", token=9)
    said = (CODE.FAILED_PRECONDITION, "store store", "run run", "store other", "restart the learner")
    with refused(*said):
        await learner.submit(step + 1, sequences(3), fence=other)
    with refused(*said):
        await learner.start_step(step + 1, sequences(3), fence=other)
    with refused(*said):
        await learner.start_binding("theirs", fence=other)
    place = {"fence": other, "policy_id": learner.policy_id, "uri": str(tmp_path / "checkpoint")}
    with refused(*said):
        await learner.stub.SaveCheckpoint(learner_pb2.SaveCheckpointRequest(**place))
    with refused(*said):
        await learner.stub.RestoreCheckpoint(learner_pb2.RestoreCheckpointRequest(**place))
    assert await learner.get() == before
    await learner.train(step + 1, sequences(3))


@pytest.mark.long
async def test_a_killed_learner_still_refuses_a_token_that_was_stale_and_is_free_for_any_store(
    tiny_model: Any, tmp_path: Path
) -> None:
    first = serving(launch(tmp_path, tiny_model(False)), tmp_path, tmp_path / "work")
    async with first.client() as channel:
        await Client.of(channel).bind("fenced")
        first.process.kill()
        first.process.wait(10)
    (tmp_path / "ready.json").unlink()
    second = serving(launch(tmp_path, tiny_model(False)), tmp_path, tmp_path / "work")
    async with second.client() as channel:
        again = Client.of(channel)
        with refused(CODE.FAILED_PRECONDITION, "token 6 is stale, 7 has been seen", "fences.json"):
            await again.start_binding("late", fence=Fence(store_id="store", token=6))
        with refused(CODE.FAILED_PRECONDITION, "token 6 is stale"):
            await again.submit(1, [], fence=Fence(store_id="store", token=6))
        theirs = await again.start_binding("theirs", fence=Fence(store_id="other", token=1))
        assert not (await again.finished(theirs)).HasField("error")
        with refused(CODE.FAILED_PRECONDITION, "store other", "run theirs"):
            await again.start_binding("fenced")
    assert second.stop() == 0


async def test_a_token_passes_once_it_is_written_down(tmp_path: Path) -> None:
    place = tmp_path / "work" / "fences.json"
    fences = Fences(place, lambda: "")
    for _ in range(2):
        with pytest.raises(FailedPrecondition, match=r"fences\.json.*cannot be written"):
            await fences.check(Fence(store_id="store", token=2))
    place.parent.mkdir()
    await fences.check(Fence(store_id="store", token=2))
    await fences.check(Fence(store_id="other", token=5))
    assert json.loads(place.read_text()) == {"store": 2, "other": 5}
    with pytest.raises(FailedPrecondition, match="token 1 is stale, 2 has been seen"):
        await Fences(place, lambda: "").check(Fence(store_id="store", token=1))


async def test_a_learner_held_for_nothing_goes_from_store_to_store(tmp_path: Path) -> None:
    held_for = ""
    fences = Fences(tmp_path / "fences.json", lambda: held_for)
    for store in ("one", "two"):
        await fences.check(Fence(store_id=store, token=1))
    held_for = "operations/1-bind"
    await fences.check(Fence(store_id="two", token=1))
    with pytest.raises(FailedPrecondition, match=r"store two: has this learner for operations/1-bind.*store one"):
        await fences.check(Fence(store_id="one", token=1))
