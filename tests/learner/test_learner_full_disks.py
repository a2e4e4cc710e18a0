"""A full disk, wherever it is: an error that names path and remedy, nothing half-written, and the learner goes on."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from learning.client import Client, failed, next_step, refused
from learning.disk import Disk, small_disk
from learning.process import Learner
from troupe.v1 import learner_pb2

pytestmark = pytest.mark.long

MakeSequences = Callable[..., list[learner_pb2.Sequence]]
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
KIB = 1 << 10


@pytest.fixture(scope="module")
def work_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    with small_disk(tmp_path_factory.mktemp("disks") / "work", "24m") as disk:
        yield disk


@pytest.fixture(scope="module")
def running(start_learner: Any, tiny_model: Any, work_disk: Disk) -> Learner:
    return start_learner(tiny_model(False), work_dir=work_disk.path / "learner")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path / "disk", "24m") as disk:
        yield disk


@pytest.mark.parametrize(
    "room", [0, 16 * KIB, 1024 * KIB, 3072 * KIB], ids=["nothing", "definition", "weights", "state"]
)
async def test_a_checkpoint_that_does_not_fit_leaves_nothing_and_the_next_one_is_whole(
    learner: Client, running: Learner, disk: Disk, sequences: MakeSequences, room: int
) -> None:
    await learner.train(await next_step(learner), sequences(4, seed=room))
    before, weights, ranks = await learner.get(), await learner.digests(), running.rank_pids()
    place = disk.path / "checkpoints" / "step-1"
    place.parent.mkdir()
    with disk.filled(leaving=room):
        failed(await learner.save(str(place)), EXHAUSTED, str(place.parent), "No space left on device", "make room")
        assert disk.entries("checkpoints") == []
    assert await learner.get() == before
    assert not (await learner.save(str(place))).HasField("error")
    await learner.train(await next_step(learner), sequences(4, seed=99))
    assert not (await learner.restore(str(place))).HasField("error")
    assert await learner.digests() == weights
    assert running.rank_pids() == ranks, "no rank was lost over it"


async def test_a_batch_that_cannot_be_kept_is_refused_and_taken_later(
    learner: Client, work_disk: Disk, sequences: MakeSequences
) -> None:
    step, batch = await next_step(learner), sequences(30, seed=30)
    kept = work_disk.entries("learner/batches")
    with work_disk.filled(leaving=4 * KIB), refused(EXHAUSTED, "learner/batches", "make room"):
        await learner.submit(step, batch)
    assert work_disk.entries("learner/batches") == kept
    await learner.train(step, batch)


async def test_a_step_whose_version_cannot_be_recorded_is_not_trained(
    learner: Client, work_disk: Disk, sequences: MakeSequences
) -> None:
    step, batch = await next_step(learner), sequences(8, seed=31)
    weights = await learner.digests()
    await learner.submit(step, batch)
    with work_disk.filled(leaving=0):
        failed(await learner.finished(await learner.start_step(step, batch)), EXHAUSTED, "lineages.json", "make room")
    assert (await learner.get()).applied_step == step - 1
    assert await learner.digests() == weights
    await learner.train(step, batch)
    assert (await learner.get()).applied_step == step


async def test_an_export_that_does_not_fit_leaves_no_file(
    learner: Client, running: Learner, work_disk: Disk, sequences: MakeSequences
) -> None:
    await learner.train(await next_step(learner), sequences(4, seed=32))
    ranks = running.rank_pids()
    for older in (running.work_dir / "exports").iterdir():
        older.unlink()  # would make room for this one
    for leaving in (0, 512 * KIB):
        with work_disk.filled(leaving), refused(EXHAUSTED, "learner/exports", "make room"):
            await learner.digests()
        assert work_disk.entries("learner/exports") == []
    assert await learner.digests()
    assert running.rank_pids() == ranks


async def test_scores_that_do_not_fit_are_refused_and_leave_no_file(
    learner: Client, running: Learner, work_disk: Disk
) -> None:
    ranks = running.rank_pids()
    rows = [list(range(200)), list(range(100))]
    for leaving in (0, 4 * KIB):  # the second takes the tokens, written by the front, but not the rank's scores
        with work_disk.filled(leaving), refused(EXHAUSTED, "learner/scores", "make room"):
            await learner.score(*rows)
        assert work_disk.entries("learner/scores") == []
    assert len((await learner.score(*rows)).scores) == 2
    assert running.rank_pids() == ranks
