"""Puts the orchestrator together: store, engines, services; and takes it down in the opposite order."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import structlog
from troupe.v1 import evaluation_pb2_grpc, solver_pb2_grpc, training_pb2, training_pb2_grpc

from troupe_orchestrator.custom_resources.eval_jobs import JobsBehindObjects
from troupe_orchestrator.custom_resources.steering import CallsSteer, ObjectsSteer, Steering
from troupe_orchestrator.custom_resources.training_runs import RunsBehindObjects
from troupe_orchestrator.engines import Engines, connect_engines
from troupe_orchestrator.evaluation.job_records import JobRecords
from troupe_orchestrator.evaluation.jobs import EvalJobs
from troupe_orchestrator.evaluation.service import EvaluationServicer
from troupe_orchestrator.evaluation.solver import SolverServicer
from troupe_orchestrator.grading.workers import MathGrader
from troupe_orchestrator.monitoring.fleet import exported
from troupe_orchestrator.monitoring.runs import RunMetrics
from troupe_orchestrator.run_config import RunConfig, ServingConfig, parse_config
from troupe_orchestrator.settings import OrchestratorSettings
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.training.listener import Everyone, RunListener
from troupe_orchestrator.training.run_queue import RunQueue
from troupe_orchestrator.training.run_records import RunRecords
from troupe_orchestrator.training.runs import Runs
from troupe_orchestrator.training.service import TrainingServicer
from troupe_orchestrator.training.weights import know_way_back

if TYPE_CHECKING:
    from troupe_orchestrator.custom_resources.controller import Controller
    from troupe_orchestrator.kubernetes.deployment import Deployment

logger = structlog.get_logger()

PROBE_BOUND: float = RunConfig.model_fields["probe_bound"].default
"""For loads that no run asked for."""
SERVICE_NAMES = ("troupe.v1.Training", "troupe.v1.Evaluation", "troupe.v1.Solver")


@dataclass(frozen=True, slots=True)
class Orchestrator:
    """The parts that serve."""

    database: Database
    engines: Engines | None
    run_records: RunRecords
    runs: Runs
    job_records: JobRecords
    jobs: EvalJobs
    serving: ServingConfig
    steering: Steering

    def register(self, server: grpc.aio.Server) -> None:
        """Add the three services."""
        training = TrainingServicer(self.runs, self.run_records, self.database, self.steering)
        training_pb2_grpc.add_TrainingServicer_to_server(training, server)
        evaluation = EvaluationServicer(self.jobs, self.job_records, self.database, self.steering)
        evaluation_pb2_grpc.add_EvaluationServicer_to_server(evaluation, server)
        solver_pb2_grpc.add_SolverServicer_to_server(SolverServicer(self.engines, self.serving), server)


@contextlib.asynccontextmanager
async def orchestrator(settings: OrchestratorSettings) -> AsyncIterator[Orchestrator]:
    """The orchestrator, with its store open; runs and jobs that were interrupted go on.

    Raises:
        LeaseHeldError: another orchestrator owns the store.
        MismatchError: the engines and the learner do not serve the same policies, or sandboxes isolate differently.
    """
    await asyncio.to_thread(settings.data_dir.mkdir, parents=True, exist_ok=True)
    serving = await asyncio.to_thread(_serving, settings.serving)
    async with contextlib.AsyncExitStack() as stack:
        # A predecessor that was killed holds its lease until it expires.
        database = await Database.open(settings.database_url(), settings.lease_seconds, 2 * settings.lease_seconds)
        stack.push_async_callback(database.close)
        stack.enter_context(_ending_when_lost(database))
        grader = await stack.enter_async_context(MathGrader(settings.grading_workers))
        engines = await connect_engines(settings, grader)
        if engines is not None:
            stack.push_async_callback(engines.close)
        # Held by a step of a run, or by an eval job: whoever holds it has the policies' versions to itself.
        boundary = asyncio.Lock()
        job_records = JobRecords(database, settings.data_dir)
        jobs = EvalJobs(database, job_records, engines, serving, boundary)
        stack.push_async_callback(jobs.close)
        if engines is not None:
            await _know_ways_back(engines, database)
        stack.enter_context(exported(engines, settings.data_dir))
        metrics = RunMetrics()
        await metrics.open(database)
        deployment = await _deployment(settings, engines)
        objects = await _custom_resources(settings, engines, database)
        listeners: tuple[RunListener, ...] = (metrics, *(each for each in (deployment, objects) if each is not None))
        everyone = Everyone(listeners)
        run_records = RunRecords(database, everyone)
        stack.push_async_callback(run_records.close)
        queue = RunQueue(database, run_records, engines, boundary, jobs, settings.patience_seconds, everyone)
        stack.push_async_callback(queue.close)
        runs = Runs(database, settings.data_dir, engines, jobs, run_records, queue)
        if deployment is not None:
            stack.push_async_callback(deployment.close)
            deployment.tell_notices(queue.tell)
            queue.on_idle(deployment.idle)
        if engines is not None:
            queue.on_start(partial(_standing, engines, deployment))
            for lookups in engines.watched.lookups:
                lookups.on_missing(queue.tell)
            # In line before anyone has the policies: the run, which finishes the step that it was in; then jobs, before its
            # next step, since they go on only with the versions that they began with.
            async with boundary:
                await queue.resume_interrupted()
                await jobs.resume_interrupted()
            if deployment is not None and not queue.under_way:
                deployment.idle()
        if objects is not None:
            job_records.on_change(objects.changed)
            await objects.start((RunsBehindObjects(runs, database), JobsBehindObjects(jobs, database)))
            stack.push_async_callback(objects.close)
        steering: Steering = CallsSteer() if objects is None else ObjectsSteer(database)
        yield Orchestrator(database, engines, run_records, runs, job_records, jobs, serving, steering)


def _standing(engines: Engines, deployment: Deployment | None) -> list[training_pb2.Condition]:
    """What a run that starts now is told of."""
    return [*engines.watched.missing(), *([] if deployment is None else deployment.in_force())]


async def _know_ways_back(engines: Engines, database: Database) -> None:
    """Where replicas come and go, one may come before the first sync."""
    for policy in engines.policies:
        if policy.fleet.watched and (await policy.learner.get()).version == policy.fleet.current:
            know_way_back(policy.learner, policy.fleet, database.fence, policy.fixed_probes, PROBE_BOUND)


async def _deployment(settings: OrchestratorSettings, engines: Engines | None) -> Deployment | None:
    """What is done for a cluster; None where there is none."""
    if engines is None or engines.cluster is None:
        return None
    # Here, as where the cluster is opened: the API's client takes a second to import.
    from troupe_orchestrator.kubernetes.deployment import Deployment
    from troupe_orchestrator.kubernetes.scaling import ReplicaPlan

    path = settings.replicas
    plan = None if path is None else parse_config(await asyncio.to_thread(path.read_text), ReplicaPlan)
    return Deployment(engines.cluster, plan)


async def _custom_resources(
    settings: OrchestratorSettings, engines: Engines | None, database: Database
) -> Controller | None:
    """What looks at TrainingRuns and EvalJobs; None where they are no requests."""
    if not settings.custom_resources or engines is None:
        return None
    from troupe_orchestrator.custom_resources.controller import Controller
    from troupe_orchestrator.kubernetes.cluster import open_api

    api = await open_api(settings.kubeconfig) if engines.cluster is None else engines.cluster.api
    return Controller(api, database)


@contextlib.contextmanager
def _ending_when_lost(database: Database) -> Iterator[None]:
    """While the block runs: an orchestrator whose store is another's ends as if it had been told to."""

    async def end() -> None:
        await database.lost.wait()
        logger.error("another orchestrator owns the store: ending", token=database.fence.token)
        signal.raise_signal(signal.SIGTERM)

    ending = asyncio.create_task(end(), name="lease-lost")
    try:
        yield
    finally:
        ending.cancel()


def _serving(path: Path | None) -> ServingConfig:
    return ServingConfig() if path is None else parse_config(path.read_text(), ServingConfig)
