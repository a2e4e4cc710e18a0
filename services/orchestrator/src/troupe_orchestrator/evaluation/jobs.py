"""Eval jobs: created, resumed after a restart, cancelled. A problem's samples finish together and are stored together.

A job holds the policies between two steps of a run, so all its items are made with one version; after a restart it goes on
only with that version, and fails by name otherwise.
"""

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import structlog
from troupe.v1 import common_pb2, evaluation_pb2
from troupe_contracts.errors import FailedPrecondition, InvalidArgument, NotFound, describe

from troupe_orchestrator.datasets.formats import FORMATS
from troupe_orchestrator.datasets.loading import DatasetError, LoadedDataset, load
from troupe_orchestrator.datasets.task import Task
from troupe_orchestrator.engines import Engines, require
from troupe_orchestrator.evaluation.summary import summarise
from troupe_orchestrator.rollout.nursery import Nursery
from troupe_orchestrator.rollout.observer import Silent
from troupe_orchestrator.rollout.task import RolloutPlan, TaskDroppedError, roll_task
from troupe_orchestrator.rollout.timeline import Timeline
from troupe_orchestrator.run_config import ServingConfig
from troupe_orchestrator.store import evals as store
from troupe_orchestrator.store.database import Database, LeaseLostError
from troupe_orchestrator.store.evals import EvalRecord, EvalState, ItemRecord
from troupe_orchestrator.store.runs import index_executions
from troupe_orchestrator.store.trees import execution_ids, write_trees
from troupe_orchestrator.training.policies import parse_version, version_text
from troupe_orchestrator.tree import DesignPayload, ExecutionPayload, NodeKind, Tree, generated_tokens

logger = structlog.get_logger()

_JOB_ID = re.compile(r"^[a-z0-9][a-z0-9-]{0,62}$")
_PROBLEMS_IN_FLIGHT = 64
MAX_DATASET_BYTES = 48 * 1024 * 1024
MAX_SAMPLES = 256


@dataclass(slots=True)
class _Active:
    task: asyncio.Task[None]
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    cancelled: bool = False
    """By request: the job ends. Without it a cancelled task is resumed at the next start."""


class EvalJobs:
    """All eval jobs of a store."""

    def __init__(
        self,
        database: Database,
        data_dir: Path,
        engines: Engines | None,
        serving: ServingConfig,
        boundary: asyncio.Lock,
    ) -> None:
        self._database = database
        self._data_dir = data_dir
        self._engines = engines
        self._serving = serving
        self._boundary = boundary
        self._active: dict[str, _Active] = {}
        self._creating = asyncio.Lock()

    async def resume_interrupted(self) -> None:
        """Go on with jobs that were running when the orchestrator before this one ended."""
        for record in await store.list_jobs(self._database, limit=1000):
            if record.state is EvalState.RUNNING:
                self._launch(record)

    async def create(self, request: evaluation_pb2.CreateEvalJobRequest) -> EvalRecord:
        """Parse the data set and start the job.

        Raises:
            InvalidArgument: a bad field, or a data set without one readable line.
            FailedPrecondition: the id belongs to another job.
        """
        _check(request)
        require(self._engines)
        # Two calls with one id are one job, also when they come together.
        async with self._creating:
            return await self._create(request)

    async def _create(self, request: evaluation_pb2.CreateEvalJobRequest) -> EvalRecord:
        job_id = request.job_id or f"eval-{uuid.uuid4().hex[:8]}"
        stored_request = evaluation_pb2.CreateEvalJobRequest()
        stored_request.CopyFrom(request)
        stored_request.ClearField("dataset")
        existing = await store.get_job(self._database, job_id)
        if existing is not None:
            same_dataset = await asyncio.to_thread(Path(existing.dataset_file).read_bytes) == request.dataset
            if not same_dataset or existing.request != stored_request.SerializeToString(deterministic=True):
                raise FailedPrecondition(job_id, "exists with another request; choose another job_id")
            return existing
        dataset = await asyncio.to_thread(_load, request)
        if not dataset.tasks:
            first = dataset.errors[0] if dataset.errors else None
            detail = f"; {first.file}:{first.line}: {first.message}" if first else ""
            raise InvalidArgument("dataset", f"{request.dataset_name or 'the data set'} has no readable line{detail}")
        folder = self._folder(job_id)
        file = folder / "dataset"
        await asyncio.to_thread(_write_file, file, request.dataset)
        record = EvalRecord(
            job_id=job_id,
            state=EvalState.RUNNING,
            reason="",
            request=stored_request.SerializeToString(deterministic=True),
            dataset_file=str(file),
            problems=len(dataset.tasks[: request.limit or None]),
            errors=tuple((error.file, error.line, error.message) for error in dataset.errors),
            versions={},
            summary=None,
            created_at=time.time(),
            ended_at=None,
        )
        await store.create_job(self._database, record)
        self._launch(record)
        return record

    async def get(self, job_id: str) -> EvalRecord:
        """One job.

        Raises:
            NotFound: there is none with this id.
        """
        record = await store.get_job(self._database, job_id)
        if record is None:
            raise NotFound("eval job", job_id)
        return record

    async def cancel(self, job_id: str) -> EvalRecord:
        """End a job; its finished items stay."""
        await self.get(job_id)
        active = self._active.get(job_id)
        if active is not None:
            active.cancelled = True
            active.task.cancel()
            # Waited for, not awaited: a caller that gives up must not undo the job's own end.
            await asyncio.wait([active.task])
        return await self.get(job_id)

    async def changes(self, job_id: str) -> AsyncIterator[EvalRecord]:
        """The job now, and again whenever an item ends, until the job has ended."""
        while True:
            record = await self.get(job_id)
            active = self._active.get(job_id)
            yield record
            if record.state is not EvalState.RUNNING:
                return
            if active is None:
                raise FailedPrecondition(job_id, "is not running in this orchestrator")
            async with active.changed:
                if not active.task.done():
                    await active.changed.wait()

    async def close(self) -> None:
        """Stop where the jobs stand; they are resumed at the next start."""
        tasks = [active.task for active in self._active.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _launch(self, record: EvalRecord) -> None:
        task = asyncio.create_task(self._supervise(record), name=f"eval-{record.job_id}")
        self._active[record.job_id] = _Active(task)

    async def _supervise(self, record: EvalRecord) -> None:
        active = self._active[record.job_id]
        try:
            async with self._boundary:
                await self._run(record, active)
        except LeaseLostError:
            raise
        except asyncio.CancelledError:
            if not active.cancelled:
                raise
            await store.end_job(self._database, record.job_id, EvalState.CANCELLED, "cancelled by request")
        except grpc.RpcError as error:
            await store.end_job(self._database, record.job_id, EvalState.FAILED, describe(error))
        except Exception as error:  # the boundary of a job: whatever ends it is recorded with it
            logger.exception("eval job failed", job=record.job_id)
            await store.end_job(self._database, record.job_id, EvalState.FAILED, f"{type(error).__name__}: {error}")
        finally:
            del self._active[record.job_id]
            async with active.changed:
                active.changed.notify_all()

    async def _run(self, record: EvalRecord, active: _Active) -> None:
        engines = require(self._engines)
        fleets = {"designer": engines.designer, "executor": engines.executor}
        versions = {role: version_text((await fleet.describe())[0].version) for role, fleet in fleets.items()}
        if record.versions and record.versions != versions:
            await store.end_job(
                self._database,
                record.job_id,
                EvalState.FAILED,
                f"began with {record.versions}, the engines now serve {versions}: items of two versions are not mixed; "
                "create the job again",
            )
            return
        await store.set_versions(self._database, record.job_id, versions)
        request = evaluation_pb2.CreateEvalJobRequest.FromString(record.request)
        content = await asyncio.to_thread(Path(record.dataset_file).read_bytes)
        dataset = await asyncio.to_thread(load, request.dataset_name, content, request.format or None)
        finished = {item.problem_id for item in await store.list_items(self._database, record.job_id)}
        tasks = [task for task in dataset.tasks[: request.limit or None] if task.task_id not in finished]
        plan = self._plan(record.job_id, request, versions)
        begun = time.time()
        places = asyncio.Semaphore(_PROBLEMS_IN_FLIGHT)

        async def problem(task: Task) -> None:
            async with places:
                items = await self._problem(task, plan, versions)
            await store.add_items(self._database, record.job_id, items)
            async with active.changed:
                active.changed.notify_all()

        async with Nursery() as group:
            for task in tasks:
                group.create_task(problem(task))
        items = await store.list_items(self._database, record.job_id)
        summary = await asyncio.to_thread(summarise, items, time.time() - begun)
        await store.end_job(
            self._database,
            record.job_id,
            EvalState.SUCCEEDED,
            "",
            summary.SerializeToString(deterministic=True),
        )

    async def _problem(self, task: Task, plan: RolloutPlan, versions: dict[str, str]) -> list[ItemRecord]:
        """All samples of one problem."""
        try:
            tree = await roll_task(task, plan, require(self._engines).services, Silent(), Timeline())
        except TaskDroppedError as drop:
            return [
                _record(
                    task,
                    evaluation_pb2.EvalItem(status="infrastructure_fault", reason=str(drop)),
                    sample,
                    versions,
                )
                for sample in range(plan.designs)
            ]
        file = self._folder(plan.scope) / "trees" / f"{tree.root.id}.parquet"
        await asyncio.to_thread(write_trees, file, [tree])
        await index_executions(self._database, plan.scope, 0, str(file), execution_ids([tree]))
        return _items(task, tree, versions)

    def _plan(self, job_id: str, request: evaluation_pb2.CreateEvalJobRequest, versions: dict[str, str]) -> RolloutPlan:
        def sampling(max_tokens: int) -> common_pb2.Sampling:
            chosen = common_pb2.Sampling(temperature=self._serving.temperature, max_tokens=max_tokens)
            if request.HasField("sampling"):
                chosen.CopyFrom(request.sampling)
                chosen.max_tokens = chosen.max_tokens or max_tokens
            return chosen

        serving = self._serving
        return RolloutPlan(
            scope=job_id,
            step=0,
            seed=request.sampling.seed if request.sampling.HasField("seed") else 0,
            designs=request.samples,
            executions=1,
            max_attempts=serving.max_attempts,
            designer_sampling=sampling(serving.sampling.designer.max_tokens),
            executor_sampling=sampling(serving.sampling.executor.max_tokens),
            designer_version=parse_version(versions["designer"]),
            executor_version=parse_version(versions["executor"]),
            budgets=serving.budgets,
            delivery_instruction=serving.delivery_instruction,
            rewards=serving.rewards,
        )

    def _folder(self, job_id: str) -> Path:
        return (self._data_dir / "evals" / job_id).resolve()


def _check(request: evaluation_pb2.CreateEvalJobRequest) -> None:
    violations = []
    if request.format and request.format not in FORMATS.names():
        violations.append(("format", f"{request.format!r} is none of {FORMATS.known()}"))
    if request.job_id and not _JOB_ID.match(request.job_id):
        violations.append(("job_id", f"{request.job_id!r} must match {_JOB_ID.pattern}"))
    if not request.dataset:
        violations.append(("dataset", "is empty: send the file's bytes"))
    if len(request.dataset) > MAX_DATASET_BYTES:
        violations.append(("dataset", f"has {len(request.dataset)} bytes, the maximum is {MAX_DATASET_BYTES}"))
    if not 1 <= request.samples <= MAX_SAMPLES:
        violations.append(("samples", f"is {request.samples}, must be 1 to {MAX_SAMPLES}"))
    if violations:
        raise InvalidArgument.every(violations)


def _load(request: evaluation_pb2.CreateEvalJobRequest) -> LoadedDataset:
    try:
        return load(request.dataset_name, request.dataset, request.format or None)
    except DatasetError as error:
        raise InvalidArgument("dataset", str(error)) from error


def _items(task: Task, tree: Tree, versions: dict[str, str]) -> list[ItemRecord]:
    records = []
    for sample, design in enumerate(tree.of_kind(NodeKind.DESIGN)):
        assert isinstance(design.payload, DesignPayload)
        conversations = list(tree.children(design.id, NodeKind.CONVERSATION))
        executions = tree.children(design.id, NodeKind.EXECUTION)
        if executions:
            execution = executions[0]
            assert isinstance(execution.payload, ExecutionPayload)
            conversations += tree.children(execution.id, NodeKind.CONVERSATION)
            item = evaluation_pb2.EvalItem(
                execution_id=execution.id,
                success=execution.payload.success,
                valid_script=True,
                answer=execution.payload.answer,
                status=execution.payload.status.value,
                reason=execution.payload.reason,
                pattern=execution.payload.executed_pattern,
            )
            parseable = execution.payload.parseable
        else:
            item = evaluation_pb2.EvalItem(status="policy_fault", reason="; ".join(design.payload.problems))
            parseable = False
        item.generated_tokens = generated_tokens(conversations)
        records.append(_record(task, item, sample, versions, parseable))
    return records


def _record(
    task: Task,
    item: evaluation_pb2.EvalItem,
    sample: int,
    versions: dict[str, str],
    parseable: bool = False,
) -> ItemRecord:
    item.problem_id = task.task_id
    item.sample = sample
    item.designer_version.CopyFrom(parse_version(versions["designer"]))
    item.executor_version.CopyFrom(parse_version(versions["executor"]))
    return ItemRecord(task.task_id, sample, task.family, parseable, item.SerializeToString(deterministic=True))


def _write_file(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
