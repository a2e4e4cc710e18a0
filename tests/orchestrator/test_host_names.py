"""Members of a fleet that come and go with the addresses of a host name."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio
from troupe.v1 import training_pb2
from troupe_orchestrator import host_names
from troupe_orchestrator.host_names import Host, Lookups, parse_host
from troupe_orchestrator.rotation import NoMembersError, Rotation
from troupe_orchestrator.settings import OrchestratorSettings


@dataclass(eq=False)
class StandInMember:
    target: str


class StandInFleet(Rotation[StandInMember]):
    """Members that are fit for work."""

    async def restore(self, member: StandInMember) -> None:
        pass


class World:
    """A fleet, and what the name server says."""

    def __init__(self) -> None:
        self.fleet = StandInFleet("executor", [], 60.0)
        self.lookups = Lookups(self.fleet, Host("executor.example", 50051), StandInMember)

    async def say(self, *hosts: str) -> list[str]:
        """The name server says so; who serves then."""
        return await self.take(addresses(*hosts))

    async def take(self, now: frozenset[str] | OSError) -> list[str]:
        self.lookups.take(now)
        for _ in range(5):
            await asyncio.sleep(0)
        return [member.target.removesuffix(":50051") for member in self.fleet.serving()]


def addresses(*hosts: str) -> frozenset[str]:
    return frozenset(f"{host}:50051" for host in hosts)


@pytest_asyncio.fixture
async def here() -> AsyncIterator[World]:
    found = World()
    yield found
    found.lookups.close()
    await found.fleet.close()


async def test_who_has_an_address_serves_and_who_lost_it_does_not(here: World) -> None:
    assert await here.say("10.0.0.1") == ["10.0.0.1"]
    first = here.fleet.serving()[0]
    assert await here.say("10.0.0.1", "10.0.0.2") == ["10.0.0.1", "10.0.0.2"]
    assert here.fleet.serving()[0] is first
    assert await here.say("10.0.0.2") == ["10.0.0.2"]
    assert not here.fleet.in_rotation(first)


async def test_a_name_server_that_does_not_answer_changes_nothing(
    here: World, capsys: pytest.CaptureFixture[str]
) -> None:
    await here.say("10.0.0.1")
    silence = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    assert await here.take(silence) == ["10.0.0.1"]
    assert await here.take(silence) == ["10.0.0.1"]
    told = capsys.readouterr()
    assert (told.out + told.err).count("cannot be looked up") == 1
    assert await here.say("10.0.0.2") == ["10.0.0.2"]


async def test_a_name_without_addresses_is_a_service_without_replicas_and_is_told_of_once(here: World) -> None:
    told: list[training_pb2.Condition] = []
    here.lookups.on_missing(told.append)
    await here.say("10.0.0.1")
    assert await here.say() == await here.say() == []
    assert isinstance(here.fleet.nobody(), NoMembersError)
    assert here.fleet.outage == ""
    (condition,) = told
    assert here.lookups.missing == condition
    assert condition.reason == "NoExecutors"
    assert condition.message.startswith("executor.example has no address")
    await here.say("10.0.0.1")
    assert here.lookups.missing is None
    await here.say()
    assert len(told) == 2


async def test_the_name_is_looked_up_again_and_again(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    says: list[frozenset[str] | Exception] = [addresses("10.0.0.1"), ValueError("unforeseen"), addresses("10.0.0.2")]

    def look_up(host: Host) -> frozenset[str]:
        now = says.pop(0) if len(says) > 1 else says[0]
        if isinstance(now, Exception):
            raise now
        return now

    monkeypatch.setattr(host_names, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(Host, "look_up", look_up)
    here.lookups.start()
    async with asyncio.timeout(30):
        await here.fleet.first()
        while [member.target for member in here.fleet.serving()] != ["10.0.0.2:50051"]:
            await asyncio.sleep(0.01)


def test_a_name_of_both_families_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that listens to both would be two replicas."""
    assert Host("localhost", 50051).look_up() == {"127.0.0.1:50051"}
    new = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fd00::1", 50051, 0, 0))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [new])
    assert Host("executor.example", 50051).look_up() == {"[fd00::1]:50051"}


@pytest.mark.parametrize("code", [socket.EAI_NONAME, socket.EAI_AGAIN])
def test_no_address_is_an_answer_and_no_answer_is_none(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuses(*_: object, **__: object) -> object:
        raise socket.gaierror(code, "no")

    monkeypatch.setattr(socket, "getaddrinfo", refuses)
    host = Host("executor.example", 50051)
    if code == socket.EAI_NONAME:
        assert host.look_up() == set()
    else:
        with pytest.raises(socket.gaierror):
            host.look_up()


@pytest.mark.parametrize(
    "target",
    [
        "dns:executor:50051",
        "dns:///executor",
        "dns:///:1",
        "dns:///executor:0",
        "dns:///a b:1",
        "dns:///a..b:1",
        f"dns:///{'a' * 64}.b:1",
    ],
)
def test_a_target_that_is_no_name_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match="must be dns:///NAME:PORT"):
        parse_host(target)
    with pytest.raises(ValueError, match="must be dns:///NAME:PORT"):
        OrchestratorSettings(designer=target, executor=target, sandbox=target)


def test_a_name_stands_alone() -> None:
    with pytest.raises(ValueError, match="TROUPE_EXECUTOR names all replicas, dns:///executor:50051, and others"):
        OrchestratorSettings(designer="d:1", executor="dns:///executor:50051,e:1", sandbox="s:1")
    settings = OrchestratorSettings(designer="d:1", executor="dns:///executor:50051", sandbox="s:1")
    assert settings.members_come_and_go
    assert not settings.watches
