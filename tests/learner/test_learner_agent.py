"""A gang agent with its front, over gRPC: orders, files, and the end of either. Ranks are stand-ins without torch."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from learning.ports import free_port
from troupe.v1 import gang_pb2, gang_pb2_grpc
from troupe_learner import joined_stream
from troupe_learner.agent import Agent
from troupe_learner.agent_ranks import AgentRanks
from troupe_learner.agents import Agents
from troupe_learner.gang import Generation, GenerationLost, RankPlan, launch
from troupe_learner.local_ranks import LocalHost
from troupe_learner.settings import LearnerSettings

COMMON = {"build": "this"}
STANDIN = Path(__file__).with_name("standin_rank.py")


@dataclass
class Gang:
    """A front and an agent on one event loop; ranks are processes."""

    folder: Path
    address: str
    agents: Agents
    agent: asyncio.Task[None]
    number: int = 0

    @property
    def plan(self) -> RankPlan:
        return RankPlan(2, 1, {"model": "/front/model"}, self.folder / "front", 30.0)

    async def formed(self) -> Generation:
        self.number += 1
        async with asyncio.timeout(60):
            return await launch(self.number, self.plan, await self.agents.gathered())

    def start_agent(self) -> None:
        ranks = AgentRanks(LocalHost(self.agent_plan), self.folder / "carried", Path("/agent/model"), self.address)
        member = gang_pb2.GangMember(node_rank=1, pod="learner-1", machine="m", common=COMMON)
        self.agent = asyncio.create_task(Agent(self.address, member, ranks).run())

    async def end_agent(self) -> None:
        self.agent.cancel()
        await asyncio.wait([self.agent])

    @property
    def agent_plan(self) -> RankPlan:
        return RankPlan(2, 1, {}, self.folder / "agent", 30.0)


async def front_at(address: str, folder: Path) -> Agents:
    settings = LearnerSettings.model_validate({"model": "m", "work_dir": folder, "nodes": 2, "gang_address": address})
    agents = Agents(settings, LocalHost(RankPlan(2, 1, {}, folder / "front", 30.0)), COMMON)
    await agents.open()
    return agents


@pytest.fixture
async def gang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gang]:
    start = asyncio.create_subprocess_exec

    async def stand_in(python: str, module: str, name: str, *arguments: str, **options: object) -> object:
        assert (python, module, name) == (sys.executable, "-m", "troupe_learner.rank")
        return await start(python, str(STANDIN), *arguments, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", stand_in)
    monkeypatch.setattr("troupe_learner.agent._RETRY_SECONDS", 0.05)
    for name in ("front", "agent"):
        (tmp_path / name).mkdir()
    address = f"127.0.0.1:{free_port()}"
    made = Gang(tmp_path, address, await front_at(address, tmp_path), asyncio.create_task(asyncio.sleep(0)))
    made.start_agent()
    yield made
    await made.end_agent()
    await made.agents.close()


def ranks() -> list[psutil.Process]:
    """Stand-ins that live."""
    found = []
    for each in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if str(STANDIN) in each.cmdline():
                found.append(each)
    return found


async def none_is_left() -> None:
    async with asyncio.timeout(30):
        while ranks():
            await asyncio.sleep(0.02)


def remote_rank(gang: Gang) -> psutil.Process:
    """The one whose log is the agent's."""
    logs = gang.folder / "agent"
    (found,) = [each for each in ranks() if Path(f"/proc/{each.pid}/fd/1").readlink().is_relative_to(logs)]
    return found


async def test_each_rank_gets_files_where_it_is_and_the_front_gets_what_they_write(gang: Gang) -> None:
    generation = await gang.formed()
    told: list[dict[str, object]] = await generation._command([{"command": "reset"}] * 2, None)
    assert told == [{"command": "reset"}] * 2
    (gang.folder / "batch.npz").write_text("sequences")
    train = {"command": "train", "batch": str(gang.folder / "batch.npz")}
    local, remote = await generation._command([train] * 2, None)
    assert local == {"read": "sequences", "from": train["batch"]}
    assert remote == {"read": "sequences", "from": str(gang.folder / "carried" / "batch")}

    draft = gang.folder / "draft"
    for name in ("state", "model"):
        (draft / name).mkdir(parents=True)
    await generation.run({"command": "save", "folder": str(draft)})
    (draft / "model" / "model.safetensors").write_text("weights")
    loaded = await generation._command([{"command": "load", "folder": str(draft)}] * 2, None)
    assert [each["read"] for each in loaded] == [[f"state of rank {rank}", "weights"] for rank in (0, 1)]
    async with asyncio.timeout(30):
        while (gang.folder / "carried").exists():
            await asyncio.sleep(0.02)
    await generation.close()
    await none_is_left()


async def test_ranks_are_told_the_model_and_the_meeting_place_of_their_own_machine(gang: Gang) -> None:
    generation = await gang.formed()
    assert generation.description["model"] == "/front/model"
    assert generation.description["rendezvous"] == "tcp://127.0.0.1:29500"
    _, link = await gang.agents.gathered()
    start = {"command": "start", "rank": 1, "model": "/front/model", "rendezvous": "tcp://127.0.0.1:7"}
    _, remote = await generation._command([start | {"rank": 0}, start], None)
    assert remote["model"] == "/agent/model"
    assert remote["rendezvous"] == "tcp://127.0.0.1:7"
    assert getattr(link, "node", 0) == 1
    await generation.close()


async def test_a_remote_rank_that_is_killed_ends_the_generation_and_the_same_agent_starts_the_next(gang: Gang) -> None:
    for _ in range(2):
        generation = await gang.formed()
        os.kill(remote_rank(gang).pid, signal.SIGKILL)
        why = await asyncio.wait_for(generation.lost(), 30)
        assert f"killed by SIGKILL (rank 1, pod learner-1, machine m, generation {gang.number})" in why
        await none_is_left()
    assert not gang.agent.done()


async def test_what_was_on_its_way_to_a_lost_generation_is_none_of_the_next_ones(
    gang: Gang, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank is killed while a checkpoint is carried; the next generation loads another one, under the same names."""
    keep, pieces = AgentRanks.keep, 0

    async def slowly(agent: AgentRanks, *arguments: Any) -> None:
        nonlocal pieces
        pieces += 1
        await asyncio.sleep(0.05)
        await keep(agent, *arguments)

    monkeypatch.setattr(AgentRanks, "keep", slowly)
    for name, size in (("first", 60), ("second", 3)):
        for part in ("state", "model"):
            (gang.folder / name / part).mkdir(parents=True)
        for rank in (0, 1):
            (gang.folder / name / "state" / f"rank-{rank}.safetensors").write_text(f"{name} {rank} " * (size << 16))
        (gang.folder / name / "model" / "model.safetensors").write_text("weights")
    generation = await gang.formed()
    loading = asyncio.create_task(generation.run({"command": "load", "folder": str(gang.folder / "first")}))
    async with asyncio.timeout(30):
        while pieces < 3:
            await asyncio.sleep(0.01)
    (local,) = [each for each in ranks() if each.pid != remote_rank(gang).pid]
    local.kill()
    await asyncio.wait_for(generation.lost(), 30)
    with pytest.raises(GenerationLost, match="killed by SIGKILL"):
        await asyncio.wait_for(loading, 30)
    assert pieces < 30, "nothing more is carried"
    following = await gang.formed()
    load = {"command": "load", "folder": str(gang.folder / "second")}
    loaded = await asyncio.wait_for(following._command([load] * 2, None), 60)
    assert [each["read"] for each in loaded] == [[f"second {rank} " * (3 << 16), "weights"] for rank in (0, 1)]
    await following.close()


async def test_an_agent_that_ends_takes_its_ranks_along_and_another_takes_its_place(gang: Gang) -> None:
    generation = await gang.formed()
    await gang.end_agent()
    assert "lost with its agent" in await asyncio.wait_for(generation.lost(), 30)
    await none_is_left()
    with pytest.raises(GenerationLost, match="rank 1, pod learner-1"):
        await generation.run({"command": "reset"})
    gang.start_agent()
    await (await gang.formed()).close()


async def test_a_front_that_ends_takes_the_remote_ranks_along_and_the_agent_joins_the_next_one(gang: Gang) -> None:
    generation = await gang.formed()
    await gang.agents.close()
    assert "lost with its agent" in await asyncio.wait_for(generation.lost(), 30)
    await none_is_left()
    gang.agents = await front_at(gang.address, gang.folder)
    await (await gang.formed()).close()
    assert not gang.agent.done()


async def test_an_agent_ends_its_ranks_when_the_front_falls_silent(gang: Gang, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joined_stream, "SILENCE_SECONDS", 1.0)
    await gang.agents.close()

    class Silent(gang_pb2_grpc.GangServicer):
        """A front that has ranks started and says nothing more."""

        joined = 0

        async def Join(
            self, request_iterator: AsyncIterator[gang_pb2.JoinRequest], context: object
        ) -> AsyncIterator[gang_pb2.JoinResponse]:
            self.joined += 1
            yield gang_pb2.JoinResponse(start=gang_pb2.StartRanks(generation=1, first_rank=1, count=1))
            await asyncio.Event().wait()

    silent = Silent()
    server = grpc.aio.server()
    gang_pb2_grpc.add_GangServicer_to_server(silent, server)
    server.add_insecure_port(gang.address)
    await server.start()
    async with asyncio.timeout(30):
        while not ranks():
            await asyncio.sleep(0.02)
        first = ranks()[0]
        while first.is_running() and first.status() != psutil.STATUS_ZOMBIE:
            await asyncio.sleep(0.02)
        while silent.joined < 2:
            await asyncio.sleep(0.02)
    await gang.end_agent()
    await server.stop(None)
    await none_is_left()
