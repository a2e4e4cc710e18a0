"""Ranks on two nodes, DeepSpeed ZeRO-2 and ZeRO-3 over gloo: they train as one rank does, and a lost rank costs a replay."""

import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from learning.client import Client, failed
from learning.nodes import DEEPSPEED, Nodes, ends, largest_difference
from troupe.v1 import learner_pb2

MakeSequences = Callable[..., list[learner_pb2.Sequence]]


pytestmark = pytest.mark.long  # two ranks on one machine are always tested: test_learner_engines.py


@pytest.fixture(scope="module", params=[2, 3], ids=["zero2", "zero3"])
def stage(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def nodes(stage: int, tmp_path_factory: pytest.TempPathFactory, tiny_model: Any) -> Iterator[Nodes]:
    started = Nodes.start(tmp_path_factory.mktemp("nodes"), tiny_model(False), zero_stage=stage)
    yield started
    started.stop()


@pytest.fixture
async def learner(nodes: Nodes) -> AsyncIterator[Client]:
    async with nodes.front.client() as channel:
        yield Client.of(channel)


async def test_two_nodes_train_as_one_rank_and_score_as_it_does(
    stage: int, learner: Client, start_learner: Any, tiny_model: Any, sequences: MakeSequences
) -> None:
    single = start_learner(tiny_model(False), zero_stage=stage, **DEEPSPEED)
    async with single.client() as channel:
        alone = Client.of(channel)
        before = (await alone.weights())[1]
        expected = [(await alone.train(step, sequences(12, seed=step), learning_rate=1e-2)).metrics for step in (1, 2)]
        weights = (await alone.weights())[1]
        scores = (await alone.score([5, 6, 7, 8], [9, 10])).scores
    single.stop()
    assert (await learner.weights())[1] == before
    found = [(await learner.train(step, sequences(12, seed=step), learning_rate=1e-2)).metrics for step in (1, 2)]
    moved = largest_difference(before, weights)
    assert moved > 1e-3, "the steps must be large against the tolerance"
    assert largest_difference((await learner.weights())[1], weights) < 1e-3 * moved
    for one, two in zip(expected, found, strict=True):
        for name in ("loss", "grad_norm", "entropy", "trained_tokens"):
            assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5)
    for one, two in zip(scores, (await learner.score([5, 6, 7, 8], [9, 10])).scores, strict=True):
        assert list(two.log_probs) == pytest.approx(list(one.log_probs), abs=1e-4)
    state = await learner.get()
    assert state.ranks == 2
    assert "2 rank(s) x 1 thread(s)" in state.engine
    assert "2 nodes" in state.engine


async def test_a_remote_rank_that_is_killed_ends_the_step_and_a_replay_gives_the_same_weights(
    learner: Client, nodes: Nodes, sequences: MakeSequences, tmp_path: Path
) -> None:
    assert not (await learner.bind("killed")).HasField("error")
    await learner.train(1, sequences(12, seed=1))
    saved = await learner.save(str(tmp_path / "checkpoint"))
    assert not saved.HasField("error"), saved.error
    parts = sorted(each.name for each in (tmp_path / "checkpoint" / "state").iterdir())
    assert parts == ["rank-0.safetensors", "rank-1.safetensors"]
    await learner.train(2, sequences(12, seed=2))
    expected = (await learner.weights())[1]

    long = sequences(80, seed=3)
    await learner.submit(3, long)
    operation = await learner.start_step(3, long, mini_batches=40)
    async for event in learner.stub.WatchOperation(learner_pb2.WatchOperationRequest(name=operation.name)):
        if event.progress:
            break
    remote, local, agent = nodes.remote_rank(), nodes.local_rank(), nodes.agent.pid
    os.kill(remote.pid, signal.SIGKILL)
    done = await learner.finished(operation)
    failed(done, grpc.StatusCode.UNAVAILABLE, "killed by SIGKILL (rank 1, pod ", "machine machine-1, generation 1")
    ends(local)
    assert (await learner.ready()).applied_step == 1
    assert nodes.agent.pid == agent
    assert nodes.agent.poll() is None
    await learner.train(2, sequences(12, seed=2))
    assert (await learner.weights())[1] == expected
    restored = await learner.restore(str(tmp_path / "checkpoint"))
    assert not restored.HasField("error"), restored.error
    await learner.train(2, sequences(12, seed=2))
    assert (await learner.weights())[1] == expected
    assert not list((nodes.folder / "agent" / "work").glob("carried/*")), "nothing is left of what was carried"
