"""Members of a fleet that come and go with the endpoints of a Service."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from standin_api.objects import endpoint, endpoint_slice
from troupe_kubernetes.mirror import Snapshot
from troupe_orchestrator.kubernetes.addresses import ServiceAddress, parse_address
from troupe_orchestrator.kubernetes.membership import Membership
from troupe_orchestrator.rotation import NoMembersError, NoReplicasError, NotReadyError, Rotation

ADDRESS = ServiceAddress("executor", "", "grpc")


@dataclass(eq=False)
class StandInMember:
    target: str


@dataclass
class Log:
    """What was asked for."""

    restored: list[str] = field(default_factory=list)
    unfit: set[str] = field(default_factory=set)


class StandInFleet(Rotation[StandInMember]):
    """Members that are fit for work unless a test says otherwise."""

    def __init__(self, outage_seconds: float = 60.0) -> None:
        super().__init__("executor", [], outage_seconds)
        self.log = Log()

    async def restore(self, member: StandInMember) -> None:
        self.log.restored.append(member.target)
        if member.target in self.log.unfit:
            raise NotReadyError("has no weights yet")


class World:
    """A fleet, and what is said of its Service."""

    def __init__(self, outage_seconds: float = 60.0) -> None:
        self.fleet = StandInFleet(outage_seconds)
        self.membership = Membership(self.fleet, ADDRESS, StandInMember)

    async def say(self, *endpoints: dict[str, object], away: str = "") -> list[str]:
        """The API server says so; who serves then."""
        self.take(Snapshot((endpoint_slice("executor", *endpoints),), away))
        for _ in range(5):
            await asyncio.sleep(0)
        return self.serving()

    def take(self, snapshot: Snapshot) -> None:
        self.membership.take(self.membership.read(snapshot))

    def serving(self) -> list[str]:
        return [member.target.removesuffix(":50051") for member in self.fleet.serving()]


async def test_who_comes_serves_once_it_is_fit_and_who_goes_does_not() -> None:
    world = World()
    assert await world.say(endpoint("10.0.0.1", "a")) == ["10.0.0.1"]
    assert await world.say(endpoint("10.0.0.1", "a"), endpoint("10.0.0.2", "b")) == ["10.0.0.1", "10.0.0.2"]
    gone = world.fleet.serving()[0]
    assert await world.say(endpoint("10.0.0.2", "b")) == ["10.0.0.2"]
    assert not world.fleet.in_rotation(gone)
    assert world.fleet.log.restored == ["10.0.0.1:50051", "10.0.0.2:50051"]


async def test_one_that_is_not_fit_is_asked_until_it_is() -> None:
    world = World()
    world.fleet.log.unfit.add("10.0.0.1:50051")
    assert await world.say(endpoint("10.0.0.1", "a")) == []
    assert "has no weights yet" in str(world.fleet.nobody())
    world.fleet.log.unfit.clear()
    await asyncio.wait_for(world.fleet.somebody(), 10)
    assert world.serving() == ["10.0.0.1"]


async def test_one_that_is_not_ready_is_made_fit_and_gets_no_work_until_it_is_ready() -> None:
    world = World()
    assert await world.say(endpoint("10.0.0.1", "a", ready=False)) == []
    assert world.fleet.log.restored == ["10.0.0.1:50051"]
    # A sync loads weights into it and puts it back: that makes it no more ready.
    world.fleet.put_back(world.fleet.replicas()[0])
    assert world.serving() == []
    await world.say(endpoint("10.0.0.1", "a"))
    await asyncio.wait_for(world.fleet.somebody(), 10)


async def test_one_that_stops_being_ready_gets_no_more_work() -> None:
    world = World()
    await world.say(endpoint("10.0.0.1", "a"), endpoint("10.0.0.2", "b"))
    assert await world.say(endpoint("10.0.0.1", "a", ready=False), endpoint("10.0.0.2", "b")) == ["10.0.0.2"]


async def test_one_that_terminates_gets_no_more_work_though_it_still_serves() -> None:
    world = World()
    await world.say(endpoint("10.0.0.1", "a"))
    assert await world.say(endpoint("10.0.0.1", "a", terminating=True)) == []
    assert world.fleet.replicas() == ()


async def test_another_pod_at_the_same_address_is_another_member() -> None:
    world = World()
    await world.say(endpoint("10.0.0.1", "a"))
    (before,) = world.fleet.replicas()
    assert await world.say(endpoint("10.0.0.1", "b")) == ["10.0.0.1"]
    assert world.fleet.replicas() != (before,)
    # What failed at the one before says nothing about this one.
    world.fleet.suspect(before, "connection refused")
    assert world.serving() == ["10.0.0.1"]


async def test_members_stay_while_the_api_server_is_away() -> None:
    world = World()
    await world.say(endpoint("10.0.0.1", "a"))
    assert await world.say(away="no answer") == ["10.0.0.1"]
    assert world.membership.notice() is None


async def test_work_waits_without_limit_while_there_is_no_member() -> None:
    world = World(outage_seconds=0.05)
    await world.say(endpoint("10.0.0.1", "a"))
    await world.say()
    waiting = asyncio.create_task(world.fleet.somebody())
    await asyncio.sleep(0.3)
    assert not waiting.done()
    assert not world.fleet.outage
    assert isinstance(world.fleet.nobody(), NoMembersError)
    await world.say(endpoint("10.0.0.2", "b"))
    await asyncio.wait_for(waiting, 10)


async def test_members_that_are_there_and_do_not_serve_are_an_outage() -> None:
    world = World(outage_seconds=0.05)
    world.fleet.log.unfit.add("10.0.0.1:50051")
    await world.say(endpoint("10.0.0.1", "a"))
    with pytest.raises(NoReplicasError, match="has no weights yet"):
        await asyncio.wait_for(world.fleet.somebody(), 10)
    await world.say()
    assert not world.fleet.outage


async def test_a_service_without_endpoints_is_told_of_once_it_is_known() -> None:
    world = World()
    assert world.membership.notice() is None
    await world.say()
    notice = world.membership.notice()
    assert notice is not None
    assert notice.reason == "NoExecutors"
    await world.say(endpoint("10.0.0.1", "a"))
    assert world.membership.notice() is None


async def test_a_service_without_the_port_names_those_that_it_has() -> None:
    world = World()
    world.take(Snapshot((endpoint_slice("executor", endpoint("10.0.0.1", "a"), port_name="rpc"),)))
    notice = world.membership.notice()
    assert notice is not None
    assert notice.message == "Service executor has no port named grpc, only http, rpc"


@pytest.mark.parametrize(
    ("target", "parsed"),
    [
        ("k8s:///executor", ("executor", "", "grpc")),
        ("k8s:///executor.other", ("executor", "other", "grpc")),
        ("k8s:///executor-2:rpc", ("executor-2", "", "rpc")),
        ("k8s:///executor.other:rpc", ("executor", "other", "rpc")),
    ],
)
def test_a_target_names_a_service_its_namespace_and_its_port(target: str, parsed: tuple[str, str, str]) -> None:
    assert parse_address(target) == ServiceAddress(*parsed)


@pytest.mark.parametrize(
    "target", ["executor:50051", "k8s://executor", "k8s:///", "k8s:///a.b.c", "k8s:///A", "k8s:///a:"]
)
def test_what_is_no_service_is_refused_and_says_how_one_is_written(target: str) -> None:
    with pytest.raises(ValueError, match="SERVICE"):
        parse_address(target)
