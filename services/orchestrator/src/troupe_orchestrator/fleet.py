"""Who the replicas of a service are, a channel each: the targets that the orchestrator was started with, or those that come
and go where somebody watches (`kubernetes.membership`, `host_names`).

A policy's replica that comes back has to be what it was at the start (tokenizer, template, architecture, policy), and to
have the version that the others serve: it is brought to it as the last sync brought them, or stays out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final, Never, cast

import grpc
from troupe.v1 import (
    common_pb2,
    designer_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
    sandbox_pb2,
    sandbox_pb2_grpc,
)
from troupe_contracts.channel import connect
from troupe_contracts.errors import describe
from troupe_contracts.identity import NOBODY, Identity, own

from troupe_orchestrator.rotation import (
    NobodyCanServeError,
    NoReplicasError,
    NotReadyError,
    Rotation,
    Seats,
    WeightsGoneError,
)

OUTAGE_SECONDS: Final = 60.0
TURN_SECONDS: Final = 300.0
_ASK_SECONDS = 10.0
_SERVING = (policy_pb2.UPDATE_STATE_SERVING, policy_pb2.UPDATE_STATE_BEGUN, policy_pb2.UPDATE_STATE_STAGED)
_PER_GENERATION = 2
"""Executions for each generation that an engine runs at once: while the script of one computes the other generates."""
_UNPUBLISHED_CAPACITY = 64
"""Of a replica that does not say how much it generates at once, which none of ours is: one that takes less answers
RESOURCE_EXHAUSTED with a delay, and is asked again after it."""
_SAME = ("policy_id", "tokenizer_digest", "chat_template_digest", "renderer", "architecture_digest", "returns_tokens")


class MismatchError(RuntimeError):
    """Services that should be alike differ."""


@dataclass(eq=False, slots=True)
class Replica:
    """One process that serves `Policy`, `Designer`, or both."""

    target: str
    stub: policy_pb2_grpc.PolicyAsyncStub
    designer: designer_pb2_grpc.DesignerAsyncStub
    seats: Seats = field(default_factory=lambda: Seats(_PER_GENERATION * _UNPUBLISHED_CAPACITY))
    """Of executions whose turns it plays."""


@dataclass(eq=False, slots=True)
class SandboxReplica:
    """One process that serves `Sandbox`."""

    target: str
    stub: sandbox_pb2_grpc.SandboxAsyncStub
    workflows: Seats = field(default_factory=lambda: Seats(0))
    tests: Seats = field(default_factory=lambda: Seats(0))


class SandboxFleet(Rotation[SandboxReplica]):
    """The sandboxes."""

    def __init__(self, targets: Sequence[str], outage_seconds: float = OUTAGE_SECONDS) -> None:
        super().__init__("sandbox", [sandbox_at(target) for target in targets], outage_seconds)
        self.profile = ""
        """The isolation profile that all of them have; empty before `connect`."""

    async def connect(self) -> None:
        """Ask each one what it takes. Where they come and go, wait for the first.

        Raises:
            MismatchError: they isolate differently.
            grpc.RpcError: one does not answer.
        """
        if self.watched:
            await self.first()
            return
        profiles = {member.target: await self._ask(member) for member in self.replicas()}
        if len(set(profiles.values())) > 1:
            raise MismatchError(f"sandboxes differ in their isolation profile: {profiles}; start them alike")
        self.profile = next(iter(profiles.values()))

    async def restore(self, member: SandboxReplica) -> None:
        profile = await self._ask(member)
        if self.profile and profile != self.profile:
            raise NotReadyError(
                f"came with isolation profile {profile}, the others have {self.profile}: executions of one run are "
                "isolated alike; start it as they were, or restart the orchestrator"
            )
        self.profile = profile

    @staticmethod
    async def _ask(member: SandboxReplica) -> str:
        """What a sandbox takes is kept; its isolation profile."""
        report = await member.stub.GetIsolation(sandbox_pb2.GetIsolationRequest(), timeout=_ASK_SECONDS)
        member.workflows.total, member.tests.total = report.workflow_slots, report.test_slots
        return report.profile


class PolicyFleet(Rotation[Replica]):
    """The replicas of one role's engine.

    Args:
        replicas: targets, or replicas that somebody made.
        shown: our credentials, for replicas of this deployment. Those of targets that a client named get none.
    """

    def __init__(
        self,
        replicas: Sequence[str | Replica],
        service: str = "executor",
        outage_seconds: float = OUTAGE_SECONDS,
        shown: Identity = NOBODY,
    ) -> None:
        members = [replica_at(each, shown) if isinstance(each, str) else each for each in replicas]
        super().__init__(service, members, outage_seconds)
        self.updating = asyncio.Lock()
        """Held by a sync while it loads weights."""
        self._follows: PolicyFleet | None = None
        self._current: common_pb2.PolicyVersion | None = None
        self._bring_up: Callable[[Replica], Awaitable[None]] | None = None
        self._gone = ""
        """Why no replica can be brought to the current version any more; empty while one may be."""
        self.identity: policy_pb2.PolicyInfo | None = None
        """What the first replica said of itself at the start; None before."""

    @property
    def current(self) -> common_pb2.PolicyVersion | None:
        """The version that is served; None while that is not known."""
        return self._current if self._follows is None else self._follows.current

    @property
    def brings_up(self) -> bool:
        """Whether it is known how a replica that comes back is brought to what is served."""
        return self._bring_up is not None

    @property
    def engines(self) -> PolicyFleet:
        """The fleet whose seats these replicas' generations take."""
        return self if self._follows is None else self._follows

    def follow(self, fleet: PolicyFleet) -> None:
        """These replicas only forward to others, which own the weights."""
        self._follows = fleet

    def synced(self, version: common_pb2.PolicyVersion, bring_up: Callable[[Replica], Awaitable[None]]) -> None:
        """All replicas in rotation have this version, and `bring_up` brings another one there."""
        self._current, self._bring_up, self._gone = version, bring_up, ""

    def pick(self, key: str) -> Replica:
        """The replica for a key by rendezvous hash: turns of one execution share a prefix cache.

        Raises:
            NoReplicasError: none is in rotation.
        """
        serving = self.serving()
        if not serving:
            raise self.nobody()
        return max(serving, key=lambda replica: _rank(key, replica)) if len(serving) > 1 else serving[0]

    def with_room(self, key: str) -> Replica | None:
        """The first replica for a key that has a free seat; None if none has."""
        free = [replica for replica in self.serving() if replica.seats.free]
        if len(free) > 1:
            return max(free, key=lambda replica: _rank(key, replica))
        return free[0] if free else None

    def require(self) -> None:
        """
        Raises:
            NoReplicasError: none is in rotation.
        """
        if not self.serving():
            raise self.nobody()

    async def describe(self) -> list[policy_pb2.PolicyInfo]:
        """What each replica in rotation says of itself; one that does not answer is taken out.

        Raises:
            NoReplicasError: none is in rotation.
        """
        described = []
        for replica in self.serving():
            try:
                described.append(await self._ask(replica))
            except grpc.RpcError as error:
                self.suspect(replica, describe(error))
        if not described:
            raise self.nobody()
        return described

    async def described(self) -> list[policy_pb2.PolicyInfo]:
        """What each replica in rotation says of itself, once one does; waited for as by work.

        Raises:
            NoReplicasError: none has for as long as work waits.
        """
        while True:
            await self.somebody()
            try:
                return await self.describe()
            except NoReplicasError:
                # Those that seemed to serve do not; now it is known.
                continue

    async def known(self) -> list[policy_pb2.PolicyInfo]:
        """What each replica in rotation says of itself; where none is, what each one has to be that comes.

        Raises:
            NoReplicasError: none has been in rotation yet.
        """
        try:
            return await self.describe()
        except NoReplicasError:
            if self.identity is None:
                raise
            return [self.identity]

    async def connect(self) -> dict[str, policy_pb2.PolicyInfo]:
        """Ask each replica who it is; what the first one says is what they all have to be.

        Raises:
            grpc.RpcError: one does not answer.
        """
        if self.watched:
            return await self._first_ones()
        described = {}
        for replica in self.replicas():
            described[replica.target] = await self._ask(replica)
        self.identity = next(iter(described.values()))
        self._current = self.identity.version
        return described

    async def _first_ones(self) -> dict[str, policy_pb2.PolicyInfo]:
        """Who is there, of members that come and go, once one serves. The newest version that one has is current: an
        orchestrator that was restarted finds engines that were synced, and one that has just come.
        """
        described: dict[str, policy_pb2.PolicyInfo] = {}
        while not described:
            await self.first()
            for replica in self.serving():
                try:
                    described[replica.target] = await self._ask(replica)
                except grpc.RpcError as error:
                    self.suspect(replica, describe(error))
        self._current = max((info.version for info in described.values()), key=lambda version: version.number)
        for replica in self.serving():
            if (info := described.get(replica.target)) is not None and info.version != self._current:
                self.suspect(replica, f"has version {_text(info.version)}, {_text(self._current)} is served")
        return described

    async def restore(self, replica: Replica) -> None:
        info = await self._ask(replica)
        if self.identity is None:
            self.identity = info if self.watched else None
        else:
            differs = [name for name in _SAME if getattr(info, name) != getattr(self.identity, name)]
            if differs:
                raise NotReadyError(
                    f"is another: {', '.join(differs)} differ from what the {self.service} had at the start "
                    f"({info.model} instead of {self.identity.model}); start it from the same model"
                )
        if info.state in _SERVING and self.current in (None, info.version):
            return
        if self._follows is not None:
            # The engine behind came back between two calls, and nobody but this one has noticed.
            await self._follows.recheck()
        if self._bring_up is None or not info.accepts_updates:
            raise NotReadyError(
                f"has version {_text(info.version)} ({policy_pb2.UpdateState.Name(info.state)}), "
                f"{_text(self.current)} is served: it waits for a sync"
            )
        async with self.updating:
            # Not while a sync is under way; one that begins meanwhile ends this.
            bring_up = self._bring_up
        try:
            await bring_up(replica)
        except WeightsGoneError as error:
            self._gone = str(error)
            self._tell()
            raise

    async def cannot_serve(self) -> Never:
        """Wait until none serves, and none can before the next sync: what waits for one would wait in vain.

        Raises:
            NobodyCanServeError: that is so now.
        """
        while self.serving() or not self._gone:
            await self._changed.wait()
        raise NobodyCanServeError(str(self.nobody()))

    async def recheck(self) -> None:
        """Take out each replica that does not have the version that is served, so that it is brought there."""
        if self.updating.locked():
            return
        for replica in self.serving():
            try:
                info = await replica.stub.GetPolicy(policy_pb2.GetPolicyRequest(), timeout=_ASK_SECONDS)
            except grpc.RpcError as error:
                self.suspect(replica, describe(error))
                continue
            if info.version != self._current and not self.updating.locked():
                self.suspect(replica, f"has version {_text(info.version)}, {_text(self._current)} is served")

    @staticmethod
    async def _ask(replica: Replica) -> policy_pb2.PolicyInfo:
        """What a replica says of itself; how much it takes is kept."""
        info = await replica.stub.GetPolicy(policy_pb2.GetPolicyRequest(), timeout=_ASK_SECONDS)
        replica.seats.total = _PER_GENERATION * (info.capacity or _UNPUBLISHED_CAPACITY)
        return info


def without_engine(designer: designer_pb2_grpc.DesignerAsyncStub) -> PolicyFleet:
    """Designers that are this one, in this process: no engine plays it and it cannot be out of rotation."""
    nobody = cast("policy_pb2_grpc.PolicyAsyncStub", None)
    return PolicyFleet([Replica("this process", nobody, designer)], "designer")


def sandbox_at(target: str) -> SandboxReplica:
    """A sandbox, and a channel to it."""
    return SandboxReplica(target, sandbox_pb2_grpc.SandboxStub(connect(target, own())))


def replica_at(target: str, shown: Identity) -> Replica:
    """A replica, and a channel to it. The channel closes when nothing holds the replica any more."""
    channel = connect(target, shown)
    return Replica(target, policy_pb2_grpc.PolicyStub(channel), designer_pb2_grpc.DesignerStub(channel))


def _rank(key: str, replica: Replica) -> bytes:
    return blake2b(f"{key}\x1f{replica.target}".encode(), digest_size=8).digest()


def _text(version: common_pb2.PolicyVersion | None) -> str:
    return "none" if version is None else f"{version.lineage}:{version.number}"
