"""Ranks and fronts that are killed: nothing hangs, nothing is left over, and a replay gives the same weights."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import psutil
from learning.client import Client, failed, next_step, refused
from learning.process import Learner, launch
from troupe.v1 import learner_pb2

Sequences = list[learner_pb2.Sequence]
MakeSequences = Callable[..., Sequences]
CODE = grpc.StatusCode


async def test_a_rank_killed_in_a_step_fails_it_and_replay_gives_the_same_weights(
    learner: Client, running: Learner, sequences: MakeSequences, tmp_path: Path
) -> None:
    step = await next_step(learner)
    await learner.save(str(tmp_path / "checkpoint"))
    before = await learner.get()
    batches = [sequences(8, seed=20), sequences(60, seed=21)]
    await learner.train(step, batches[0])
    await learner.train(step + 1, batches[1], mini_batches=30)
    expected = (await learner.weights())[1]
    await learner.restore(str(tmp_path / "checkpoint"))
    await learner.train(step, batches[0])

    await learner.submit(step + 1, batches[1])
    operation = await learner.start_step(step + 1, batches[1], mini_batches=30)
    (rank,) = running.rank_pids()
    os.kill(rank, signal.SIGKILL)
    killed = time.monotonic()
    done = await learner.finished(operation)
    assert time.monotonic() - killed < 2
    failed(done, CODE.UNAVAILABLE, "killed by SIGKILL", "replay")
    lost = await learner.get()
    assert lost.state == learner_pb2.GANG_STATE_RESTARTING
    assert "SIGKILL" in lost.detail
    with refused(CODE.UNAVAILABLE, "wait for READY"):
        await learner.weights()

    back = await learner.ready()
    assert (back.applied_step, back.applied_digest) == (step - 1, before.applied_digest)
    assert back.run_id == "run"
    with refused(CODE.FAILED_PRECONDITION, f"replay from {step}"):
        await learner.start_step(step + 1, batches[1])
    await learner.train(step, batches[0])
    await learner.train(step + 1, batches[1], mini_batches=30)
    assert (await learner.weights())[1] == expected
    assert (await learner.get()).applied_step == step + 1


def test_a_front_that_is_killed_takes_its_ranks_along(tiny_model: Any, tmp_path: Path) -> None:
    """Killed while the rank still starts: the worst moment."""
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
