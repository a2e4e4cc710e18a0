"""Agents and fronts of a gang on two nodes that die, fall silent, come back or are of another kind."""

import asyncio
import json
import os
import signal
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from learning.client import Client, failed, refused
from learning.nodes import Nodes, ends, is_gone
from troupe.v1 import learner_pb2

pytestmark = pytest.mark.long

MakeSequences = Callable[..., list[learner_pb2.Sequence]]
CODE = grpc.StatusCode
ABSENT = "waiting for node 1 of 2: its agent has not come"


@pytest.fixture(scope="module", params=[2, 3], ids=["zero2", "zero3"])
def nodes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_model: Any) -> Iterator[Nodes]:
    started = Nodes.start(tmp_path_factory.mktemp("nodes"), tiny_model(False), zero_stage=request.param)
    yield started
    started.stop()


@pytest.fixture
async def learner(nodes: Nodes) -> AsyncIterator[Client]:
    async with nodes.front.client() as channel:
        yield Client.of(channel)


async def trained_twice(learner: Client, folder: Path, sequences: MakeSequences, run_id: str) -> dict[str, str]:
    """A run with one step in a checkpoint and one after it; digests of the weights then."""
    assert not (await learner.bind(run_id)).HasField("error")
    await learner.train(1, sequences(8, seed=1))
    assert not (await learner.save(str(folder / "first"))).HasField("error")
    await learner.train(2, sequences(8, seed=2))
    return await learner.digests()


async def long_step(learner: Client, sequences: MakeSequences) -> learner_pb2.Operation:
    """Step 3, under way."""
    batch = sequences(80, seed=3)
    await learner.submit(3, batch)
    operation = await learner.start_step(3, batch, mini_batches=40)
    async for event in learner.stub.WatchOperation(learner_pb2.WatchOperationRequest(name=operation.name)):
        if event.progress:
            break
    return operation


async def waits_for(learner: Client, *texts: str) -> None:
    """Until the learner says what it waits for."""
    async with asyncio.timeout(60):
        while True:
            detail = (await learner.get()).detail
            if all(text in detail for text in texts):
                break
            await asyncio.sleep(0.05)
    assert (await learner.get()).state == learner_pb2.GANG_STATE_RESTARTING


async def a_replay_leads_back(learner: Client, sequences: MakeSequences, expected: dict[str, str]) -> None:
    back = await learner.ready()
    assert (back.run_id, back.applied_step) == (learner.run_id, 1)
    await learner.train(2, sequences(8, seed=2))
    assert await learner.digests() == expected


async def test_an_agent_that_is_killed_is_waited_for_and_a_new_one_takes_its_place(
    learner: Client, nodes: Nodes, sequences: MakeSequences, tmp_path: Path
) -> None:
    expected = await trained_twice(learner, tmp_path, sequences, "agent-killed")
    operation = await long_step(learner, sequences)
    remote, local = nodes.remote_rank(), nodes.local_rank()
    os.kill(nodes.agent.pid, signal.SIGKILL)
    nodes.agent.wait(10)
    failed(await learner.finished(operation), CODE.UNAVAILABLE, "rank 1, pod ", "machine machine-1", "replay")
    ends(remote)
    ends(local)
    await waits_for(learner, ABSENT)
    with refused(CODE.UNAVAILABLE, ABSENT):
        await learner.weights()
    nodes.start_agent()
    await a_replay_leads_back(learner, sequences, expected)


async def test_an_agent_that_falls_silent_is_lost_and_joins_again_when_it_goes_on(
    learner: Client, nodes: Nodes, sequences: MakeSequences, tmp_path: Path
) -> None:
    expected = await trained_twice(learner, tmp_path, sequences, "agent-silent")
    operation = await long_step(learner, sequences)
    remote, local = nodes.remote_rank(), nodes.local_rank()
    # The whole machine: neither rank nor agent ends, and none says anything.
    for pid in (remote.pid, nodes.agent.pid):
        os.kill(pid, signal.SIGSTOP)
    failed(await learner.finished(operation), CODE.UNAVAILABLE, "no sign of life for 8 s", "rank 1", "machine-1")
    ends(local)
    await waits_for(learner, ABSENT)
    assert not is_gone(remote), "a zombie of the old generation"
    for pid in (remote.pid, nodes.agent.pid):
        os.kill(pid, signal.SIGCONT)
    ends(remote)
    await a_replay_leads_back(learner, sequences, expected)
    assert nodes.agent.poll() is None


async def test_a_front_that_is_killed_takes_the_remote_ranks_along_and_the_agent_waits_for_the_next(
    learner: Client, nodes: Nodes, sequences: MakeSequences, tmp_path: Path
) -> None:
    expected = await trained_twice(learner, tmp_path, sequences, "front-killed")
    await long_step(learner, sequences)
    remote, local = nodes.remote_rank(), nodes.local_rank()
    nodes.front.process.kill()
    nodes.front.process.wait(10)
    ends(remote)
    ends(local)
    assert nodes.agent.poll() is None
    nodes.start_front()
    async with nodes.front.client() as channel:
        again = Client.of(channel)
        again.run_id = learner.run_id
        assert (await again.get()).applied_step == 0
        assert not (await again.restore(str(tmp_path / "first"))).HasField("error")
        await a_replay_leads_back(again, sequences, expected)


async def test_an_agent_of_another_config_is_refused_by_name_until_one_of_the_same_comes(
    learner: Client, nodes: Nodes, sequences: MakeSequences, tmp_path: Path
) -> None:
    expected = await trained_twice(learner, tmp_path, sequences, "other-config")
    second = nodes.start_agent("second")
    nodes.says("second", "has an agent already")
    assert (await learner.get()).state == learner_pb2.GANG_STATE_READY
    second.terminate()
    second.wait(30)
    nodes.agent.terminate()
    assert nodes.agent.wait(30) == 0
    other = nodes.start_agent("other", old_log_probs="recompute")
    difference = "TROUPE_OLD_LOG_PROBS is recompute there and behaviour here"
    await waits_for(learner, "waiting for node 1 of 2", difference)
    nodes.says("other", difference)
    assert other.poll() is None, "it stays, as pods of an update that has not reached the front do"
    other.terminate()
    assert other.wait(30) == 0
    nodes.start_agent()
    await a_replay_leads_back(learner, sequences, expected)


async def test_a_front_that_is_silent_loses_its_agent_which_ends_its_ranks_by_itself(
    learner: Client, nodes: Nodes, sequences: MakeSequences, tmp_path: Path
) -> None:
    expected = await trained_twice(learner, tmp_path, sequences, "front-silent")
    remote = nodes.remote_rank()
    os.kill(nodes.front.process.pid, signal.SIGSTOP)
    try:
        ends(remote)
    finally:
        os.kill(nodes.front.process.pid, signal.SIGCONT)
    async with asyncio.timeout(60):
        while (await learner.get()).applied_step == 2:
            await asyncio.sleep(0.05)
    await a_replay_leads_back(learner, sequences, expected)


async def test_a_healthy_agent_says_so_with_and_without_a_front(
    learner: Client, nodes: Nodes, sequences: MakeSequences
) -> None:
    metrics = json.loads((nodes.folder / "agent" / "ready.json").read_text())["metrics"]

    def healthz() -> int:
        with urllib.request.urlopen(f"http://{metrics}/healthz", timeout=10) as answer:
            return int(answer.status)

    await learner.ready()
    assert await asyncio.to_thread(healthz) == 200
    assert nodes.front.stop() == 0
    nodes.says("agent", "not in the gang")
    assert await asyncio.to_thread(healthz) == 200
    nodes.start_front()
