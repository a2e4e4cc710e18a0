"""The services that the orchestrator works with, found and checked at start.

An orchestrator without engines shows what earlier runs and jobs left, and refuses everything else by name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import grpc
import structlog
from troupe.v1 import policy_pb2, training_pb2
from troupe_contracts import identity
from troupe_contracts.errors import FailedPrecondition, describe

from troupe_orchestrator.fleet import MismatchError, PolicyFleet, SandboxFleet, replica_at, sandbox_at
from troupe_orchestrator.grading.workers import MathGrader
from troupe_orchestrator.host_names import Lookups, names_host, parse_host
from troupe_orchestrator.kubernetes.addresses import names_service
from troupe_orchestrator.rollout.admission import Admission
from troupe_orchestrator.rollout.judge import Judge, TaskGrader
from troupe_orchestrator.rollout.task import Services
from troupe_orchestrator.rotation import Member, Rotation
from troupe_orchestrator.settings import OrchestratorSettings, targets
from troupe_orchestrator.training.learner import LearnerClient
from troupe_orchestrator.training.policies import Policy

if TYPE_CHECKING:
    from troupe_orchestrator.kubernetes.cluster import Cluster

logger = structlog.get_logger()

_ASK_AGAIN_SECONDS: Final = 5.0
M = TypeVar("M", bound=Member)


class PolicyMismatchError(MismatchError):
    """Two services that should have one policy differ in tokenizer, template or architecture."""


@dataclass(frozen=True, slots=True)
class Watched:
    """What says who the members of fleets are that come and go."""

    cluster: Cluster | None
    lookups: list[Lookups[Any]] = field(default_factory=list)

    def follow(self, rotation: Rotation[M], target: str, make: Callable[[str], M]) -> None:
        """Have a fleet's members come and go where its setting names a Service or a host's addresses."""
        if names_service(target):
            assert self.cluster is not None
            self.cluster.follow(rotation, target, make)
        elif names_host(target):
            lookups = Lookups(rotation, parse_host(target), make)
            self.lookups.append(lookups)
            lookups.start()

    def missing(self) -> list[training_pb2.Condition]:
        """What runs are told of names without addresses."""
        return [lookups.missing for lookups in self.lookups if lookups.missing is not None]

    async def close(self) -> None:
        """Watch nobody."""
        for lookups in self.lookups:
            lookups.close()
        if self.cluster is not None:
            await self.cluster.close()


@dataclass(frozen=True, slots=True)
class Engines:
    """Who rolls out, and who trains."""

    services: Services
    designer: PolicyFleet
    executor: PolicyFleet
    policies: Sequence[Policy]
    """Empty without a learner: evaluation and solving only."""
    sandboxes: SandboxFleet
    watched: Watched

    @property
    def cluster(self) -> Cluster | None:
        """Where members are endpoints of Services."""
        return self.watched.cluster

    async def close(self) -> None:
        """Watch nobody, and ask no more for who went out of rotation."""
        await self.watched.close()
        for rotation in (self.designer, self.executor, self.sandboxes):
            await rotation.close()


def require(engines: Engines | None) -> Engines:
    """The engines.

    Raises:
        FailedPrecondition: this orchestrator has none.
    """
    if engines is None:
        raise FailedPrecondition(
            "engines",
            "this orchestrator only shows records: start it with TROUPE_DESIGNER, TROUPE_EXECUTOR and TROUPE_SANDBOX",
        )
    return engines


async def connect_engines(settings: OrchestratorSettings, grader: MathGrader) -> Engines | None:
    """Connect to everything that the settings name. Services that come and go are waited for.

    Raises:
        MismatchError: sandboxes isolate differently, or engines and learner do not serve the same policies.
        grpc.RpcError: one of them does not answer.
        NoClusterError: members are to be watched, and there is no API server to ask.
    """
    if settings.records_only:
        return None
    cluster = None
    if settings.watches:
        # Here, since the API's client takes a second to import, which only a cluster needs.
        from troupe_orchestrator.kubernetes.cluster import Cluster

        cluster = await Cluster.open(settings.kubeconfig)
    watched = Watched(cluster)
    try:
        return await _connect(settings, grader, watched)
    except BaseException:
        await watched.close()
        raise


async def _connect(settings: OrchestratorSettings, grader: MathGrader, watched: Watched) -> Engines:
    sandboxes = SandboxFleet(_hosts(settings.sandbox), settings.outage_seconds)
    watched.follow(sandboxes, settings.sandbox, sandbox_at)
    await sandboxes.connect()
    logger.info(
        "sandboxes",
        profile=sandboxes.profile,
        workflow_slots={each.target: each.workflows.total for each in sandboxes.replicas()},
    )
    executors = _policy_fleet(settings, watched, "executor", settings.executor)
    await executors.connect()
    designers = await _designers(settings, executors, watched)
    admission = Admission(sandboxes)
    services = Services(
        admission=admission,
        designers=designers,
        executors=executors,
        judge=Judge(TaskGrader(grader, admission)),
        turn_seconds=settings.turn_seconds,
    )
    policies = await _policies(settings, designers, executors)
    return Engines(services, designers, executors, policies, sandboxes, watched)


def _hosts(target: str) -> tuple[str, ...]:
    """The targets that a setting lists; none where others say who they are."""
    return () if names_service(target) or names_host(target) else targets(target)


def _policy_fleet(settings: OrchestratorSettings, watched: Watched, service: str, target: str) -> PolicyFleet:
    fleet = PolicyFleet(_hosts(target), service, settings.outage_seconds, shown=identity.own())
    watched.follow(fleet, target, partial(replica_at, shown=identity.own()))
    return fleet


async def _designers(settings: OrchestratorSettings, executors: PolicyFleet, watched: Watched) -> PolicyFleet:
    """The designers: with engines of their own, or forwarding to the executors.

    Raises:
        PolicyMismatchError: some of them forward and some do not, or a learner is missing for those that do not.
    """
    own = _policy_fleet(settings, watched, "designer", settings.designer)
    described = await own.connect()
    if settings.designer == settings.executor:
        # The same processes. Where they come and go, the one list may be ahead of the other.
        own.follow(executors)
        return own
    known = {replica.target for replica in executors.replicas()}
    forwards = {target: target in known or _forwards(info, executors) for target, info in described.items()}
    if all(forwards.values()):
        own.follow(executors)
        return own
    if any(forwards.values()):
        raise PolicyMismatchError(
            f"of the designers {[target for target, does in forwards.items() if does]} forward to the executor's engine "
            f"and {[target for target, does in forwards.items() if not does]} have engines of their own: start them alike"
        )
    if settings.learner and not settings.designer_learner:
        target, info = next(iter(described.items()))
        raise PolicyMismatchError(
            f"designer {target} has an engine of its own (policy {info.policy_id!r}, {info.model}), and nobody is said to "
            "train it: set TROUPE_DESIGNER_LEARNER, or let it forward to the executor (TROUPE_ENGINE=remote)"
        )
    return own


def _forwards(info: policy_pb2.PolicyInfo, executors: PolicyFleet) -> bool:
    return bool(info.owner) and executors.identity is not None and info.policy_id == executors.identity.policy_id


async def _policies(
    settings: OrchestratorSettings, designer_fleet: PolicyFleet, executor_fleet: PolicyFleet
) -> Sequence[Policy]:
    """Who trains and who serves which role; none without a learner."""
    if not settings.learner:
        return ()
    executor_learner = await _learner(settings, settings.learner)
    if not settings.designer_learner:
        policies = [Policy(executor_learner.policy_id, executor_learner, executor_fleet, ("designer", "executor"))]
    else:
        designer_learner = await _learner(settings, settings.designer_learner)
        policies = [
            Policy(designer_learner.policy_id, designer_learner, designer_fleet, ("designer",)),
            Policy(executor_learner.policy_id, executor_learner, executor_fleet, ("executor",)),
        ]
    for policy in policies:
        await _check_digests(policy)
    return policies


async def _learner(settings: OrchestratorSettings, target: str) -> LearnerClient:
    """The learner at a target. Where members come and go, services start in any order, and it is waited for."""
    while True:
        try:
            return await LearnerClient.connect(target, settings.stall_seconds)
        except grpc.RpcError as error:
            if not settings.members_come_and_go or error.code() not in _STARTING:
                raise
            logger.info("waiting for the learner", target=target, why=describe(error))
            await asyncio.sleep(_ASK_AGAIN_SECONDS)


_STARTING: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


async def _check_digests(policy: Policy) -> None:
    """Refuse an engine that would tokenise or compute differently from the learner."""
    learner = await policy.learner.get()
    for engine in await policy.fleet.describe():
        if engine.policy_id != policy.policy_id:
            raise PolicyMismatchError(
                f"replica {engine.replica_id} serves policy {engine.policy_id!r}, its learner at "
                f"{policy.learner.target} trains {policy.policy_id!r}: give both one TROUPE_POLICY_ID"
            )
        if not engine.returns_tokens:
            raise PolicyMismatchError(
                f"replica {engine.replica_id} returns no token ids: a hosted model can evaluate and solve, not be trained"
            )
        for name in ("tokenizer_digest", "chat_template_digest", "architecture_digest"):
            ours, theirs = getattr(learner, name), getattr(engine, name)
            if ours != theirs:
                raise PolicyMismatchError(
                    f"{name} differs: learner at {policy.learner.target} has {ours[:12]} ({learner.model}), replica "
                    f"{engine.replica_id} has {theirs[:12]} ({engine.model}); start both from one model"
                )
