"""The services that the orchestrator works with, found and checked at start.

An orchestrator without engines shows what earlier runs and jobs left, and refuses everything else by name.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from troupe.v1 import policy_pb2
from troupe_contracts import identity
from troupe_contracts.errors import FailedPrecondition

from troupe_orchestrator.fleet import MismatchError, PolicyFleet, SandboxFleet
from troupe_orchestrator.grading.workers import MathGrader
from troupe_orchestrator.rollout.admission import Admission
from troupe_orchestrator.rollout.judge import Judge, TaskGrader
from troupe_orchestrator.rollout.task import Services
from troupe_orchestrator.settings import OrchestratorSettings, targets
from troupe_orchestrator.training.learner import LearnerClient
from troupe_orchestrator.training.policies import Policy

logger = structlog.get_logger()


class PolicyMismatchError(MismatchError):
    """Two services that should have one policy differ in tokenizer, template or architecture."""


@dataclass(frozen=True, slots=True)
class Engines:
    """Who rolls out, and who trains."""

    services: Services
    designer: PolicyFleet
    executor: PolicyFleet
    policies: Sequence[Policy]
    """Empty without a learner: evaluation and solving only."""
    sandboxes: SandboxFleet

    async def close(self) -> None:
        """Ask no more for who went out of rotation."""
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
    """Connect to everything that the settings name.

    Raises:
        MismatchError: sandboxes isolate differently, or engines and learner do not serve the same policies.
        grpc.RpcError: one of them does not answer.
    """
    if settings.records_only:
        return None
    sandboxes = SandboxFleet(targets(settings.sandbox), settings.outage_seconds)
    await sandboxes.connect()
    logger.info(
        "sandboxes",
        profile=sandboxes.profile,
        workflow_slots={each.target: each.workflows.total for each in sandboxes.replicas()},
    )
    executors = PolicyFleet(targets(settings.executor), "executor", settings.outage_seconds, shown=identity.own())
    await executors.connect()
    designers = await _designers(settings, executors)
    admission = Admission(sandboxes)
    services = Services(
        admission=admission,
        designers=designers,
        executors=executors,
        judge=Judge(TaskGrader(grader, admission)),
        turn_seconds=settings.turn_seconds,
    )
    policies = await _policies(settings, designers, executors)
    return Engines(services, designers, executors, policies, sandboxes)


async def _designers(settings: OrchestratorSettings, executors: PolicyFleet) -> PolicyFleet:
    """The designers: with engines of their own, or forwarding to the executors.

    Raises:
        PolicyMismatchError: some of them forward and some do not, or a learner is missing for those that do not.
    """
    own = PolicyFleet(targets(settings.designer), "designer", settings.outage_seconds, shown=identity.own())
    described = dict(zip([each.target for each in own.replicas()], await own.connect(), strict=True))
    known = {replica.target for replica in executors.replicas()}
    forwards = {target: target in known or _forwards(info, executors) for target, info in described.items()}
    if all(forwards.values()):
        return PolicyFleet(
            targets(settings.designer), "designer", settings.outage_seconds, follows=executors, shown=identity.own()
        )
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
    executor_learner = await LearnerClient.connect(settings.learner, settings.stall_seconds)
    if not settings.designer_learner:
        policies = [Policy(executor_learner.policy_id, executor_learner, executor_fleet, ("designer", "executor"))]
    else:
        designer_learner = await LearnerClient.connect(settings.designer_learner, settings.stall_seconds)
        policies = [
            Policy(designer_learner.policy_id, designer_learner, designer_fleet, ("designer",)),
            Policy(executor_learner.policy_id, executor_learner, executor_fleet, ("executor",)),
        ]
    for policy in policies:
        await _check_digests(policy)
    return policies


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
