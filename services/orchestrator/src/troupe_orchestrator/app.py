"""Puts the orchestrator together: store, fleets, services; and takes it down in the opposite order."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import grpc
import structlog
from troupe.v1 import (
    designer_pb2_grpc,
    evaluation_pb2_grpc,
    sandbox_pb2,
    sandbox_pb2_grpc,
    solver_pb2_grpc,
    training_pb2_grpc,
)
from troupe_contracts.channel import connect

from troupe_orchestrator.evaluation.jobs import EvalJobs
from troupe_orchestrator.evaluation.service import EvaluationServicer
from troupe_orchestrator.evaluation.solver import SolverServicer
from troupe_orchestrator.fleet import PolicyFleet
from troupe_orchestrator.grading.workers import MathGrader
from troupe_orchestrator.rollout.judge import Judge, TaskGrader
from troupe_orchestrator.rollout.task import Services
from troupe_orchestrator.run_config import ServingConfig, parse_config
from troupe_orchestrator.settings import OrchestratorSettings, targets
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.training.learner import LearnerClient
from troupe_orchestrator.training.run_loop import Policy
from troupe_orchestrator.training.runs import Runs
from troupe_orchestrator.training.service import TrainingServicer

logger = structlog.get_logger()

SERVICE_NAMES = ("troupe.v1.Training", "troupe.v1.Evaluation", "troupe.v1.Solver")


class PolicyMismatchError(RuntimeError):
    """Two services that should have one policy differ in tokenizer, template or architecture."""


@contextlib.asynccontextmanager
async def orchestrator(settings: OrchestratorSettings) -> AsyncIterator["Orchestrator"]:
    """The orchestrator, with its store open; runs and jobs that were interrupted go on.

    Raises:
        LeaseHeldError: another orchestrator owns the store.
        PolicyMismatchError: the engines and the learner do not serve the same policies.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    serving = await asyncio.to_thread(_serving, settings.serving)
    database = await Database.open(settings.database_url(), settings.lease_seconds, settings.lease_seconds * 2)
    grader = MathGrader(settings.grading_workers)
    try:
        built = await _build(settings, serving, database, grader)
        await built.runs.resume_interrupted()
        await built.jobs.resume_interrupted()
        yield built
        await built.runs.close()
        await built.jobs.close()
    finally:
        await grader.close()
        await database.close()


class Orchestrator:
    """The parts that serve."""

    def __init__(
        self, runs: Runs, jobs: EvalJobs, services: Services, serving: ServingConfig, database: Database
    ) -> None:
        self.runs = runs
        self.jobs = jobs
        self._services = services
        self._serving = serving
        self._database = database

    def register(self, server: grpc.aio.Server) -> None:
        """Add the three services."""
        training_pb2_grpc.add_TrainingServicer_to_server(TrainingServicer(self.runs, self._database), server)
        evaluation_pb2_grpc.add_EvaluationServicer_to_server(EvaluationServicer(self.jobs, self._database), server)
        ungraded = replace(self._services, judge=Judge(None))
        solver_pb2_grpc.add_SolverServicer_to_server(SolverServicer(ungraded, self._serving), server)


async def _build(
    settings: OrchestratorSettings, serving: ServingConfig, database: Database, grader: MathGrader
) -> Orchestrator:
    designers, executors = targets(settings.designer), targets(settings.executor)
    sandbox = sandbox_pb2_grpc.SandboxStub(connect(targets(settings.sandbox)[0]))
    isolation = await sandbox.GetIsolation(sandbox_pb2.GetIsolationRequest())
    logger.info("sandbox", profile=isolation.profile, workflow_slots=isolation.workflow_slots)
    designer_fleet, executor_fleet = PolicyFleet(designers), PolicyFleet(executors)
    policies = await _policies(settings, designer_fleet, executor_fleet)
    services = Services(
        designer=designer_pb2_grpc.DesignerStub(connect(designers[0])),
        pick_executor=executor_fleet.pick,
        sandbox=sandbox,
        workflow_slots=asyncio.Semaphore(isolation.workflow_slots),
        judge=Judge(TaskGrader(grader, sandbox)),
    )
    boundary = asyncio.Lock()
    runs = Runs(database, settings.data_dir, services, policies, boundary)
    jobs = EvalJobs(database, settings.data_dir, services, designer_fleet, executor_fleet, serving, boundary)
    return Orchestrator(runs, jobs, services, serving, database)


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


def _serving(path: Path | None) -> ServingConfig:
    return ServingConfig() if path is None else parse_config(path.read_text(), ServingConfig)
