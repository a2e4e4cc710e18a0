"""Runs the items of one job that have not been run. The unit is a sample of a problem: one design and its execution.

Each item is rolled out by itself and stored when it ends, so that a job which is killed repeats none that is stored, and a
fault of ours costs one item and not a problem's others.
"""

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from troupe.v1 import evaluation_pb2

from troupe_orchestrator.datasets.task import Task
from troupe_orchestrator.engines import Engines
from troupe_orchestrator.evaluation.fixed_designs import designer_of
from troupe_orchestrator.evaluation.items import faulted_item, finished_item
from troupe_orchestrator.evaluation.job_log import JobLog
from troupe_orchestrator.evaluation.requests import load_dataset, sampling_of
from troupe_orchestrator.evaluation.summary import summarise
from troupe_orchestrator.evaluation.targets import Served, served
from troupe_orchestrator.rollout.fault_report import FaultReport
from troupe_orchestrator.rollout.nursery import Nursery
from troupe_orchestrator.rollout.served import while_served
from troupe_orchestrator.rollout.task import RolloutPlan, Services, TaskDroppedError, roll_task
from troupe_orchestrator.rollout.timeline import Timeline
from troupe_orchestrator.run_config import ServingConfig
from troupe_orchestrator.store import evals as store
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.evals import EvalState
from troupe_orchestrator.training.policies import parse_version

_ITEMS_IN_FLIGHT = 256


class VersionChangedError(RuntimeError):
    """The target serves another version than the job's items were made with."""


async def run_job(log: JobLog, database: Database, engines: Engines, report: FaultReport) -> None:
    """Run what is left of a job, to its end. Whoever calls this holds the boundary where the target needs it.

    Args:
        report: tells, while items are run, which faults they meet.

    Raises:
        VersionChangedError: the job has items of another version; it has not ended then.
        NobodyCanServeError: the weights of its items are gone; neither has it ended then.
    """
    record = log.record
    request = evaluation_pb2.CreateEvalJobRequest.FromString(record.request)
    target = evaluation_pb2.EvalTarget.FromString(record.target)
    content = await asyncio.to_thread(Path(record.dataset_file).read_bytes)
    dataset = await asyncio.to_thread(load_dataset, request, content)
    async with served(request, target, record, database, engines) as ready:
        finished = await store.list_items(database, record.job_id)
        if finished and record.versions != ready.versions:
            raise VersionChangedError(
                f"began with {record.versions}, the target now serves {ready.versions}: items of two versions are not "
                "mixed; create the job again"
            )
        await log.began(ready.versions)
        done = {(item.problem_id, item.sample) for item in finished}
        left = (
            (number, task, sample)
            for number, (task, sample) in enumerate(itertools.product(dataset.tasks, range(request.samples)))
            if (task.task_id, sample) not in done
        )
        needed = [ready.services.executors] if ready.designs else [ready.services.executors, ready.services.designers]
        async with report.reporting(), while_served(*needed):
            await _run_items(left, _Rollouts(log, ready, report))
    items = await store.list_items(database, record.job_id)
    summary = await asyncio.to_thread(summarise, items, record.problems * request.samples, log.seconds)
    await log.end(EvalState.SUCCEEDED, "", summary)


async def _run_items(left: Iterator[tuple[int, Task, int]], rollouts: "_Rollouts") -> None:
    async def work() -> None:
        # All of them take from one iterator: each item is taken once.
        for number, task, sample in left:
            await rollouts.run(number, task, sample)

    async with Nursery() as group:
        for _ in range(_ITEMS_IN_FLIGHT):
            group.create_task(work())


class _Rollouts:
    """How the items of a job are rolled out."""

    def __init__(self, log: JobLog, ready: Served, report: FaultReport) -> None:
        record = log.record
        self._report = report
        self._log = log
        self._ready = ready
        self._scope = record.job_id
        self._request = evaluation_pb2.CreateEvalJobRequest.FromString(record.request)
        self._serving = ServingConfig.model_validate_json(record.serving)

    async def run(self, number: int, task: Task, sample: int) -> None:
        """Run one item and store it."""
        versions = self._ready.versions
        try:
            services = self._services(number, task, sample)
            tree = await roll_task(task, self._plan(sample), services, self._report, Timeline())
        except TaskDroppedError as drop:
            await self._log.add(faulted_item(task, sample, str(drop), versions))
        else:
            await self._log.add(finished_item(task, sample, tree, versions))

    def _services(self, number: int, task: Task, sample: int) -> Services:
        """Those of the target; in a mode without a designer with one that knows this item's script."""
        ready = self._ready
        if ready.designs is None:
            return ready.services
        return replace(ready.services, designers=designer_of(ready.designs(task.task_id, sample, number)))

    def _plan(self, sample: int) -> RolloutPlan:
        request, serving = self._request, self._serving
        versions = {role: parse_version(text) for role, text in self._ready.versions.items()}
        return RolloutPlan(
            scope=self._scope,
            # A job has no steps: its samples take their place in ids and seeds.
            step=sample,
            seed=request.sampling.seed if request.sampling.HasField("seed") else 0,
            designs=1,
            executions=1,
            max_attempts=serving.max_attempts,
            designer_sampling=sampling_of(request, serving, serving.sampling.designer.max_tokens),
            executor_sampling=sampling_of(request, serving, serving.sampling.executor.max_tokens),
            designer_version=versions.get("designer"),
            executor_version=versions["executor"],
            budgets=serving.budgets,
            delivery_instruction=serving.delivery_instruction,
            rewards=serving.rewards,
        )
