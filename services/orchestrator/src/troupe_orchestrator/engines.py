"""The services that the orchestrator works with, found and checked at start.

An orchestrator without engines shows what earlier runs and jobs left, and refuses everything else by name.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from troupe.v1 import designer_pb2_grpc, sandbox_pb2, sandbox_pb2_grpc
from troupe_contracts.channel import connect
from troupe_contracts.errors import FailedPrecondition

from troupe_orchestrator.fleet import PolicyFleet
from troupe_orchestrator.grading.workers import MathGrader
from troupe_orchestrator.rollout.judge import Judge, TaskGrader
from troupe_orchestrator.rollout.task import Services
from troupe_orchestrator.settings import OrchestratorSettings, targets
from troupe_orchestrator.training.learner import LearnerClient
from troupe_orchestrator.training.policies import Policy

logger = structlog.get_logger()


class PolicyMismatchError(RuntimeError):
    """Two services that should have one policy differ in tokenizer, template or architecture."""


@dataclass(frozen=True, slots=True)
class Engines:
    """Who rolls out, and who trains."""

    services: Services
    designer: PolicyFleet
    executor: PolicyFleet
    policies: Sequence[Policy]
    """Empty without a learner: evaluation and solving only."""


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
        PolicyMismatchError: engines and learner do not serve the same policies.
        grpc.RpcError: one of them does not answer.
    """
    if settings.records_only:
        return None
    designers, executors = targets(settings.designer), targets(settings.executor)
    sandbox = sandbox_pb2_grpc.SandboxStub(connect(targets(settings.sandbox)[0]))
    isolation = await sandbox.GetIsolation(sandbox_pb2.GetIsolationRequest())
    logger.info("sandbox", profile=isolation.profile, workflow_slots=isolation.workflow_slots)
    designer_fleet, executor_fleet = PolicyFleet(designers), PolicyFleet(executors)
    services = Services(
        designer=designer_pb2_grpc.DesignerStub(connect(designers[0])),
        pick_executor=executor_fleet.pick,
        sandbox=sandbox,
        workflow_slots=asyncio.Semaphore(isolation.workflow_slots),
        judge=Judge(TaskGrader(grader, sandbox)),
    )
    policies = await _policies(settings, designer_fleet, executor_fleet)
    return Engines(services, designer_fleet, executor_fleet, policies)


async def _policies(
    settings: OrchestratorSettings, designer_fleet: PolicyFleet, executor_fleet: PolicyFleet
) -> Sequence[Policy]:
    """Who trains and who serves which role; none without a learner."""
    if not settings.learner:
        return ()
    executor_learner = await LearnerClient.connect(settings.learner)
    if not settings.designer_learner:
        policies = [Policy(executor_learner.policy_id, executor_learner, executor_fleet, ("designer", "executor"))]
    else:
        designer_learner = await LearnerClient.connect(settings.designer_learner)
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
        for name in ("tokenizer_digest", "architecture_digest"):
            ours, theirs = getattr(learner, name), getattr(engine, name)
            if ours != theirs:
                raise PolicyMismatchError(
                    f"{name} differs: learner at {policy.learner.target} has {ours[:12]} ({learner.model}), replica "
                    f"{engine.replica_id} has {theirs[:12]} ({engine.model}); start both from one model"
                )
