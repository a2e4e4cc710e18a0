"""Two ranks of DeepSpeed ZeRO-3 behind the service: collectives, deaths, checkpoints of partitions."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from learning.client import Client, failed
from learning.process import Learner
from safetensors.numpy import load_file
from troupe.v1 import learner_pb2
from troupe_learner.checkpoint import _own_sha256


@pytest.fixture(scope="module")
def running(start_learner: Any, tiny_model: Any) -> Learner:
    return start_learner(tiny_model(True), engine="deepspeed", ranks=2, zero_stage=3, tokens_per_microbatch=200)


@pytest.mark.long
async def test_partitions_are_saved_restored_exported_and_survive_a_death(
    learner: Client, running: Learner, sequences: Callable[..., list[learner_pb2.Sequence]], tmp_path: Path
) -> None:
    assert "deepspeed ZeRO-3" in (await learner.get()).engine
    manifest, found = await learner.weights()
    stored = load_file(Path((await learner.get()).model) / "model.safetensors")
    assert {name: value.tobytes() for name, value in stored.items()} == found
    assert manifest.tied_embeddings

    await learner.train(1, sequences(12, seed=1))
    place = tmp_path / "checkpoint"
    saved = await learner.save(str(place))
    assert not saved.HasField("error"), saved.error
    assert sorted(each.name for each in (place / "state").iterdir()) == [
        "rank-0.safetensors",
        "rank-1.safetensors",
    ]
    await learner.train(2, sequences(12, seed=2))
    expected = (await learner.weights())[1]
    await learner.restore(str(place))
    await learner.train(2, sequences(12, seed=2))
    assert (await learner.weights())[1] == expected

    long = sequences(80, seed=3)
    await learner.submit(3, long)
    operation = await learner.start_step(3, long, mini_batches=40)
    pids = running.rank_pids()
    os.kill(pids[1], signal.SIGKILL)
    done = await learner.finished(operation)
    failed(done, grpc.StatusCode.UNAVAILABLE, "killed by SIGKILL")
    assert not any(psutil.pid_exists(pid) for pid in pids), "rank 0 must not wait in a collective for ever"
    assert (await learner.ready()).applied_step == 1
    await learner.train(2, sequences(12, seed=2))
    assert (await learner.weights())[1] == expected

    record = json.loads((place / "checkpoint.json").read_text())
    record["layout"] |= {"ranks": 4}
    record["sha256"] = _own_sha256(record)
    (place / "checkpoint.json").write_text(json.dumps(record))
    failed(await learner.restore(str(place)), grpc.StatusCode.FAILED_PRECONDITION, "ranks=4")
    assert (await learner.get()).applied_step == 2


def test_the_end_of_the_front_is_the_end_of_its_ranks(running: Learner) -> None:
    pids = running.rank_pids()
    assert len(pids) == 2
    running.process.kill()
    running.process.wait(10)
    gone, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], 20)
    assert not alive, gone
