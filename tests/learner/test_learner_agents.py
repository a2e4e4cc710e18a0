"""Whom the front takes into its gang, and what it makes of those that go. Agents are stand-ins: bare calls of Join."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from guarded.authority import Authority
from learning.client import refused
from learning.ports import free_port
from troupe.v1 import gang_pb2, gang_pb2_grpc
from troupe_contracts.access import Role
from troupe_contracts.channel import connect
from troupe_contracts.identity import NOBODY, Identity, read_identity
from troupe_contracts.tokens import line_for, new_token
from troupe_learner import joined_stream
from troupe_learner.agents import Agents
from troupe_learner.gang import CommandRefused, GenerationLost, RankPlan, launch
from troupe_learner.local_ranks import LocalHost
from troupe_learner.settings import LearnerSettings

CODE = grpc.StatusCode
COMMON = {"TROUPE_ZERO_STAGE": "2", "build": "this"}
Request, Response = gang_pb2.JoinRequest, gang_pb2.JoinResponse


@dataclass
class Agent:
    """A stand-in: says what the test says."""

    channel: grpc.aio.Channel
    call: grpc.aio.StreamStreamCall[Request, Response] = field(init=False)

    async def join(self, node: int = 1, pod: str = "learner-1", **common: str) -> Response:
        """The first response."""
        self.call = gang_pb2_grpc.GangStub(self.channel).Join()
        member = gang_pb2.GangMember(node_rank=node, pod=pod, machine="m", common=COMMON | common)
        await self.say(Request(member=member))
        response = await self.call.read()
        if not isinstance(response, Response):
            await self.call  # raises its status
        return response

    async def say(self, request: Request) -> None:
        await self.call.write(request)

    async def hears(self, kind: str) -> Response:
        """The next response of a kind; what is between is dropped."""
        while True:
            response = await self.call.read()
            assert isinstance(response, Response), "the stream ended"
            if response.WhichOneof("message") == kind:
                return response

    def goes(self) -> None:
        self.call.cancel()


@dataclass
class Served:
    """The front's end, and a maker of agents that dial it."""

    agents: Agents
    address: str
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    def agent(self, identity: Identity = NOBODY) -> Agent:
        self.channels.append(connect(self.address, identity))
        return Agent(self.channels[-1])

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not holds():
                await asyncio.sleep(0.01)


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Callable[..., object]]:
    served: list[Served] = []

    async def start(**settings: object) -> Served:
        address = f"127.0.0.1:{free_port()}"
        given = {"model": "m", "work_dir": tmp_path, "nodes": 2, "gang_address": address, **settings}
        here = LocalHost(RankPlan(2, 1, {}, tmp_path, 60.0))
        agents = Agents(LearnerSettings.model_validate(given), here, COMMON)
        await agents.open()
        served.append(Served(agents, address))
        return served[-1]

    yield start
    for each in served:
        for channel in each.channels:
            await channel.close()
        await each.agents.close()


async def test_the_gang_is_gathered_once_every_node_has_an_agent(serve) -> None:
    front = await serve(nodes=3)
    assert "node 1 of 3: its agent has not come; waiting for node 2" in front.agents.missing()
    gathering = asyncio.create_task(front.agents.gathered())
    assert (await front.agent().join(node=2, pod="learner-2")).WhichOneof("message") == "heartbeat"
    await asyncio.sleep(0.05)
    assert not gathering.done()
    await front.agent().join(node=1)
    hosts = await asyncio.wait_for(gathering, 30)
    assert [getattr(host, "node", 0) for host in hosts] == [0, 1, 2]
    assert front.agents.missing() == ""


async def test_an_agent_that_differs_is_refused_by_name_and_the_front_says_so(serve) -> None:
    front = await serve()
    with refused(CODE.FAILED_PRECONDITION, "learner-1", "TROUPE_ZERO_STAGE is 3 there and 2 here", "build is that"):
        await front.agent().join(TROUPE_ZERO_STAGE="3", build="that")
    assert "learner-1 was refused: TROUPE_ZERO_STAGE is 3 there and 2 here" in front.agents.missing()
    await front.agent().join()
    assert front.agents.missing() == ""


async def test_a_node_has_one_agent_for_as_long_as_it_lives(serve) -> None:
    front = await serve()
    first = front.agent()
    await first.join(pod="first")
    with refused(CODE.FAILED_PRECONDITION, "node 1", "has an agent already, first", "TROUPE_NODE_RANK"):
        await front.agent().join(pod="second")
    first.goes()
    await front.until(lambda: front.agents.missing() != "")
    await front.agent().join(pod="second")


@pytest.mark.parametrize("node", [0, 2])
async def test_a_node_that_is_not_of_the_gang_is_refused(serve, node: int) -> None:
    front = await serve()
    with refused(CODE.INVALID_ARGUMENT, f"is {node}", "nodes 0 to 1"):
        await front.agent().join(node=node)


async def test_a_stream_begins_with_the_member(serve) -> None:
    front = await serve()
    agent = front.agent()
    agent.call = gang_pb2_grpc.GangStub(agent.channel).Join()
    await agent.say(Request(heartbeat=gang_pb2.Heartbeat()))
    with refused(CODE.INVALID_ARGUMENT, "member"):
        await agent.call.read()
        await agent.call


async def test_only_the_role_of_learners_joins(serve, tmp_path: Path) -> None:
    tokens = {role: new_token() for role in Role if role is not Role.ANONYMOUS}
    (tmp_path / "tokens").write_text("".join(f"{line_for(role, token)}\n" for role, token in tokens.items()))
    front = await serve(tokens=tmp_path / "tokens")
    with refused(CODE.UNAUTHENTICATED, "TROUPE_TOKEN_FILE"):
        await front.agent().join()
    for role, token in tokens.items():
        if role is not Role.LEARNER:
            with refused(CODE.PERMISSION_DENIED, "is for learner"):
                await front.agent(Identity(token=token)).join()
    await front.agent(Identity(token=tokens[Role.LEARNER])).join()
    assert front.agents.missing() == ""


async def test_with_certificates_only_that_of_a_learner_joins(serve, tmp_path: Path) -> None:
    authority = Authority.new(tmp_path)
    pair = authority.sign("front", "troupe-role:learner")
    front = await serve(tls_cert=pair.certificate, tls_key=pair.key, tls_ca=authority.certificate)
    for role in (Role.ENGINE, Role.LEARNER):
        shown = authority.sign(str(role), f"troupe-role:{role}")
        agent = front.agent(read_identity(None, authority.certificate, shown.certificate, shown.key))
        if role is Role.LEARNER:
            await agent.join()
        else:
            with refused(CODE.PERMISSION_DENIED, "is for learner"):
                await agent.join()
    assert front.agents.missing() == ""


async def test_a_silent_agent_counts_as_gone(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joined_stream, "SILENCE_SECONDS", 0.3)
    front = await serve()
    await front.agent().join()
    await front.until(lambda: front.agents.missing() != "")
    await front.agent().join(pod="the next one")


async def test_an_agent_whose_call_is_cancelled_again_while_it_ends_is_gone_all_the_same(serve) -> None:
    front = await serve()

    async def requests() -> AsyncIterator[Request]:
        yield Request(member=gang_pb2.GangMember(node_rank=1, pod="learner-1", common=COMMON))
        await asyncio.Event().wait()

    async def take() -> None:
        async for _ in front.agents.Join(requests(), None):
            pass

    call = asyncio.create_task(take())
    await front.until(lambda: front.agents.missing() == "")
    for _ in range(2):
        call.cancel()
        await asyncio.sleep(0)
    await asyncio.wait([call])
    assert front.agents.missing() != ""


async def test_ranks_of_an_agent_that_goes_are_lost_with_it(serve) -> None:
    front = await serve()
    agent = front.agent()
    await agent.join()
    _, link = await front.agents.gathered()
    (rank,) = await link.start(4, range(1, 2))
    agent.goes()
    ending = await asyncio.wait_for(rank.ended(), 30)
    assert "lost with its agent" in ending.how
    assert "learner-1, machine m" in rank.place
    (too_late,) = await link.start(5, range(1, 2))
    assert "lost with its agent" in (await asyncio.wait_for(too_late.ended(), 30)).how


async def test_what_an_earlier_generation_says_is_not_heard(serve) -> None:
    front = await serve()
    agent = front.agent()
    await agent.join()
    _, link = await front.agents.gathered()
    await link.start(4, range(1, 2))
    (rank,) = await link.start(5, range(1, 2))
    for generation in (4, 5):
        word = f'{{"kind": "done", "result": {generation}}}'.encode()
        await agent.say(Request(said=gang_pb2.RankWord(generation=generation, rank=1, word=word)))
    assert (await asyncio.wait_for(rank.receive(), 30))["result"] == 5
    await agent.say(Request(ended=gang_pb2.RankEnd(generation=4, rank=1, how="killed by SIGKILL", by_signal=True)))
    await agent.say(Request(ended=gang_pb2.RankEnd(generation=5, rank=1, how="ended with status 7")))
    assert (await asyncio.wait_for(rank.ended(), 30)).how == "ended with status 7"


async def test_a_batch_that_the_agent_cannot_keep_refuses_the_command_before_any_rank_is_told(
    serve, tmp_path: Path
) -> None:
    front = await serve()
    agent = front.agent()
    await agent.join()
    _, link = await front.agents.gathered()
    await link.start(1, range(1, 2))
    (tmp_path / "batch.npz").write_bytes(b"a batch")
    carrying = asyncio.create_task(link.carry({"command": "train", "batch": str(tmp_path / "batch.npz")}))
    piece = (await agent.hears("piece")).piece
    assert (piece.generation, piece.name, piece.data, piece.last) == (1, "batch", b"a batch", True)
    problem = gang_pb2.FileProblem(code="RESOURCE_EXHAUSTED", message="batch on the agent: no room")
    # Of the generation before, whose file had the same name.
    await agent.say(Request(receipt=gang_pb2.FileReceipt(generation=0, name="batch")))
    await agent.say(Request(receipt=gang_pb2.FileReceipt(generation=1, name="batch", problem=problem)))
    with pytest.raises(CommandRefused, match="no room") as caught:
        await asyncio.wait_for(carrying, 30)
    assert caught.value.code == "RESOURCE_EXHAUSTED"


async def test_a_part_of_a_checkpoint_that_the_front_cannot_keep_is_a_refusal_of_its_rank(
    serve, tmp_path: Path
) -> None:
    front = await serve()
    agent = front.agent()
    await agent.join()
    _, link = await front.agents.gathered()
    (rank,) = await link.start(1, range(1, 2))
    (tmp_path / "draft").write_text("a file where a folder should be")
    await rank.send({"command": "save", "folder": str(tmp_path / "draft")})
    await agent.hears("tell")
    piece = gang_pb2.FilePiece(generation=1, name="state/rank-1.safetensors", data=b"state", last=True)
    await agent.say(Request(piece=piece))
    await agent.say(Request(said=gang_pb2.RankWord(generation=1, rank=1, word=b'{"kind": "done", "result": {}}')))
    while (answer := await asyncio.wait_for(rank.receive(), 30))["kind"] == "progress":
        pass
    assert answer["kind"] == "refused"
    assert "on the front" in answer["message"]


async def test_a_generation_whose_agent_goes_while_it_forms_is_lost_by_name(serve, tmp_path: Path) -> None:
    front = await serve()
    agent = front.agent()
    await agent.join()
    hosts = await front.agents.gathered()
    forming = asyncio.create_task(launch(1, RankPlan(2, 1, {}, tmp_path, 60.0, "lo"), hosts))
    await agent.hears("start")
    agent.goes()
    with pytest.raises(GenerationLost, match=r"lost with its agent.*rank 1, pod learner-1, machine m, generation 1"):
        await asyncio.wait_for(forming, 60)
