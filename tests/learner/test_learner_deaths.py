"""Ranks and fronts that are killed: nothing hangs, nothing is left over, and a replay gives the same weights."""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from learning.client import Client, failed, refused
from learning.process import Learner, launch, serving
from troupe.v1 import learner_pb2

pytestmark = pytest.mark.long

Sequences = list[learner_pb2.Sequence]
MakeSequences = Callable[..., Sequences]
CODE = grpc.StatusCode
# Seconds in which a command reaches a rank that is stopped; it cannot answer, however long.
_REACHES_SECONDS = 0.3


@pytest.fixture(scope="module")
def running(start_learner: Any, tiny_model: Any) -> Learner:
    return start_learner(tiny_model(False))


async def train_third(learner: Client, folder: Path, batch: Sequences) -> learner_pb2.Operation:
    await learner.submit(3, batch)
    return await learner.finished(await learner.start_step(3, batch))


async def save(learner: Client, folder: Path, batch: Sequences) -> learner_pb2.Operation:
    return await learner.save(str(folder / "second"))


async def restore(learner: Client, folder: Path, batch: Sequences) -> learner_pb2.Operation:
    return await learner.restore(str(folder / "first"))


async def begin_another(learner: Client, folder: Path, batch: Sequences) -> learner_pb2.Operation:
    return await learner.finished(await learner.start_binding("another", str(folder / "first")))


CHANGES = [train_third, save, restore, begin_another]
READS: dict[str, Callable[[Client], Awaitable[object]]] = {
    "ExportWeights": Client.weights,
    "Score": lambda learner: learner.score([5, 6, 7]),
}


async def trained_twice(learner: Client, folder: Path, sequences: MakeSequences, run_id: str) -> dict[str, str]:
    """A run with one step in a checkpoint and one after it; digests of the weights then."""
    await learner.bind(run_id)
    await learner.train(1, sequences(8, seed=1))
    assert not (await learner.save(str(folder / "first"))).HasField("error")
    await learner.train(2, sequences(8, seed=2))
    return await learner.digests()


async def is_back_at_the_checkpoint(learner: Client, sequences: MakeSequences, expected: dict[str, str]) -> None:
    """The learner has the one step, and the second one leads where it led."""
    back = await learner.ready()
    assert (back.run_id, back.applied_step) == (learner.run_id, 1)
    assert "killed by SIGKILL" in back.detail
    with refused(CODE.FAILED_PRECONDITION, "replay from 2"):
        await learner.start_step(3, sequences(8, seed=3))
    await learner.train(2, sequences(8, seed=2))
    assert await learner.digests() == expected


@pytest.mark.parametrize("change", CHANGES)
async def test_a_rank_killed_in_a_change_fails_it_and_replay_gives_the_same_weights(
    change: Callable[[Client, Path, Sequences], Awaitable[learner_pb2.Operation]],
    learner: Client,
    running: Learner,
    sequences: MakeSequences,
    tmp_path: Path,
) -> None:
    expected = await trained_twice(learner, tmp_path, sequences, f"run-{change.__name__}")
    generation = (await learner.ready()).generation
    (rank,) = running.rank_pids()
    os.kill(rank, signal.SIGSTOP)
    changing = asyncio.create_task(change(learner, tmp_path, sequences(8, seed=3)))
    await asyncio.sleep(_REACHES_SECONDS)
    assert not changing.done()
    os.kill(rank, signal.SIGKILL)
    failed(await changing, CODE.UNAVAILABLE, "killed by SIGKILL", "wait for READY", "replay")
    with refused(CODE.UNAVAILABLE, "wait for READY"):
        await learner.weights()
    assert [each.name for each in tmp_path.iterdir()] == ["first"], "nothing half-saved"
    await is_back_at_the_checkpoint(learner, sequences, expected)
    assert (await learner.ready()).generation == generation + 1


@pytest.mark.parametrize("read", READS)
async def test_a_rank_killed_in_a_read_fails_it_and_replay_gives_the_same_weights(
    read: str,
    learner: Client,
    running: Learner,
    sequences: MakeSequences,
    tmp_path: Path,
) -> None:
    expected = await trained_twice(learner, tmp_path, sequences, f"run-{read}")
    await learner.train(3, sequences(8, seed=3))
    (rank,) = running.rank_pids()
    os.kill(rank, signal.SIGSTOP)
    reading = asyncio.ensure_future(READS[read](learner))
    await asyncio.sleep(_REACHES_SECONDS)
    assert not reading.done()
    os.kill(rank, signal.SIGKILL)
    with refused(CODE.UNAVAILABLE, "killed by SIGKILL", "wait for READY"):
        await reading
    await is_back_at_the_checkpoint(learner, sequences, expected)
    for folder in ("exports", "scores"):
        assert len(list((running.work_dir / folder).iterdir())) <= (folder == "exports")


async def test_a_rank_killed_while_it_computes_a_step_or_while_idle_is_replaced(
    learner: Client, running: Learner, sequences: MakeSequences, tmp_path: Path
) -> None:
    expected = await trained_twice(learner, tmp_path, sequences, "run-computing")
    long = sequences(60, seed=21)
    await learner.submit(3, long)
    operation = await learner.start_step(3, long, mini_batches=30)
    async for event in learner.stub.WatchOperation(learner_pb2.WatchOperationRequest(name=operation.name)):
        if event.progress:  # some mini-batches are applied, others are not
            break
    os.kill(running.rank_pids()[0], signal.SIGKILL)
    failed(await learner.finished(operation), CODE.UNAVAILABLE, "killed by SIGKILL", "replay")
    await is_back_at_the_checkpoint(learner, sequences, expected)
    os.kill(running.rank_pids()[0], signal.SIGKILL)
    while (await learner.get()).state == learner_pb2.GANG_STATE_READY:
        await asyncio.sleep(0.01)
    await is_back_at_the_checkpoint(learner, sequences, expected)


async def test_a_front_killed_while_a_rank_trains_leaves_no_rank_and_a_free_port(
    tiny_model: Any, sequences: MakeSequences, tmp_path: Path
) -> None:
    folder = tmp_path / "learner"
    front = serving(launch(folder, tiny_model(False), lineage="first"), folder, folder / "work")
    async with front.client() as channel:
        learner = Client.of(channel)
        await learner.train(1, sequences(8, seed=1))
        long = sequences(60, seed=21)
        await learner.submit(2, long)
        await learner.start_step(2, long, mini_batches=30)
        ranks = [psutil.Process(pid) for pid in front.rank_pids()]
        front.process.kill()
        front.process.wait(10)
    gone, alive = psutil.wait_procs(ranks, 20)
    assert len(gone) == 1
    assert not alive
    (folder / "ready.json").unlink()
    again = serving(launch(folder, tiny_model(False), lineage="first", listen=front.target), folder, folder / "work")
    async with again.client() as channel:
        state = await Client.of(channel).get()
        assert again.target == front.target
        assert (state.run_id, state.applied_step) == ("", 0)
        assert state.version.lineage != "first", "versions of it were served with other weights"
    assert again.stop() == 0


def test_a_front_that_is_killed_takes_ranks_along_that_still_start(tiny_model: Any, tmp_path: Path) -> None:
    front = launch(tmp_path, tiny_model(False))
    children = Path(f"/proc/{front.pid}/task/{front.pid}/children")
    give_up = time.monotonic() + 60
    while not (ranks := children.read_text().split()):
        assert time.monotonic() < give_up
        time.sleep(0.01)
    while b"troupe_learner.rank" not in Path(f"/proc/{ranks[0]}/cmdline").read_bytes():
        time.sleep(0.005)
    front.kill()
    front.wait(10)
    give_up = time.monotonic() + 30
    while any(psutil.pid_exists(int(rank)) for rank in ranks):
        assert time.monotonic() < give_up
        time.sleep(0.01)
