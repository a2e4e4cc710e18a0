"""Eval jobs: created, gone on with after a restart, cancelled, watched. Owns one task per job that runs.

A job that needs the engines of this deployment holds the boundary between two steps of a run, so that all its items are
made with one version; one that has items goes on after a restart only with their version, and fails by name otherwise. A
run's validation is a job too: it is run by the run, which holds the boundary already.

What is on record as running is run: a call that puts it there is carried out also where its client gives up, and where the
store does not answer it is read again.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
import structlog
from sqlalchemy.exc import SQLAlchemyError
from troupe.v1 import evaluation_pb2
from troupe_contracts.errors import Exhausted, FailedPrecondition, ServiceError, Unavailable, describe

from troupe_orchestrator.engines import Engines, require
from troupe_orchestrator.evaluation.job_log import JobLog, open_feed
from troupe_orchestrator.evaluation.job_records import JobRecords
from troupe_orchestrator.evaluation.job_run import VersionChangedError, run_job
from troupe_orchestrator.evaluation.lending import GiveBackError
from troupe_orchestrator.evaluation.references import check_references
from troupe_orchestrator.evaluation.requests import check_request, load_dataset, most_votes
from troupe_orchestrator.evaluation.stored_weights import StoredWeightsError
from troupe_orchestrator.evaluation.targets import resolve, uses_own_engines
from troupe_orchestrator.rollout.fault_report import FaultReport
from troupe_orchestrator.rotation import NoReplicasError
from troupe_orchestrator.run_config import ServingConfig
from troupe_orchestrator.store import evals as store
from troupe_orchestrator.store.database import Database, LeaseLostError, StoreUnavailableError
from troupe_orchestrator.store.evals import EvalRecord, EvalState
from troupe_orchestrator.store.files import DISK_FULL, FileWriteError
from troupe_orchestrator.training.weights import WeightSyncError

logger = structlog.get_logger()

_Result = TypeVar("_Result")
_STORE_PAUSE_SECONDS = 1.0
_ROOM_SECONDS = 10.0
"""After which a client may ask again where the disk was full."""
_BY_REQUEST = "cancelled by request"
_NAMED = (VersionChangedError, GiveBackError, StoredWeightsError, WeightSyncError, NoReplicasError)
"""What says by itself why a job cannot go on."""


@dataclass(slots=True)
class _Active:
    log: JobLog
    task: asyncio.Task[None]
    cancelled: bool = False
    """By request: the job ends. Without it a cancelled task is resumed at the next start."""
    begun: bool = False
    """A task that is cancelled before never runs, and would not end its job."""


class EvalJobs:
    """All eval jobs of a store."""

    def __init__(
        self,
        database: Database,
        records: JobRecords,
        engines: Engines | None,
        serving: ServingConfig,
        boundary: asyncio.Lock,
    ) -> None:
        self._database = database
        self._records = records
        self._engines = engines
        self._serving = serving
        self._boundary = boundary
        self._active: dict[str, _Active] = {}
        self._calls: set[asyncio.Task[Any]] = set()
        """What is carried out whether or not somebody waits for it."""
        self._closing = False
        self._starting = asyncio.Lock()
        """Held from a look at a job's record until the job is active: nobody else may write to it in between."""

    async def resume_interrupted(self) -> None:
        """Go on with jobs that were running when the orchestrator before this one ended; a run goes on with its own."""
        async with self._starting:
            for record in await store.running_jobs(self._database):
                if not record.run_id and record.job_id not in self._active:
                    await self._launch(record)

    async def create(self, request: evaluation_pb2.CreateEvalJobRequest) -> EvalRecord:
        """Parse the data set and start the job.

        Raises:
            InvalidArgument: a bad field, or a data set without one readable line.
            NotFound: the target's run or checkpoint, or a job that this one builds upon.
            FailedPrecondition: the id belongs to another job, the target cannot be evaluated here, or a job that
                this one builds upon does not fit.
            Exhausted: the data set does not fit on the disk.
            Unavailable: it cannot be written for another reason, or the engines do not serve.
        """
        check_request(request, self._serving.budgets)
        return await self._carried_out(self._create(request, require(self._engines)))

    async def _create(self, request: evaluation_pb2.CreateEvalJobRequest, engines: Engines) -> EvalRecord:
        # Two calls with one id are one job, also when they come together.
        async with self._starting:
            existing = await self._records.existing(request)
            if existing is not None:
                return await self._going(existing)
            dataset = await asyncio.to_thread(load_dataset, request, request.dataset)
            votes = await check_references(request, self._database, most_votes(self._serving.budgets))
            try:
                target = await resolve(request.target, self._database, engines)
            except NoReplicasError as error:
                raise Unavailable(str(error)) from error
            try:
                record = await self._records.add(request, dataset, target, self._serving, votes=votes)
            except FileWriteError as error:
                raise _not_written(error) from error
            await self._launch(record)
            return record

    async def validate(
        self,
        request: evaluation_pb2.CreateEvalJobRequest,
        run_id: str,
        step: int,
        serving: ServingConfig,
        report: FaultReport,
    ) -> EvalRecord:
        """Run a job of a run to its end, now; the same job again goes on where it stood, or is what it ended as.

        For a run's loop, which holds the boundary. What goes wrong on our side is raised, and the job goes on at the next
        call; where the engines' version has another name since, from its start.

        Args:
            report: told which faults its rollouts meet.

        Raises:
            FailedPrecondition: the run's validations so far had other problems.
            FileWriteError: the problems could not be written.
            NobodyCanServeError: the weights that this validates are gone.
        """
        engines = require(self._engines)
        async with self._starting:
            record = await store.get_job(self._database, request.job_id)
            if record is None:
                record = await self._added(request, run_id, step, serving)
            if record.state is not EvalState.RUNNING:
                return record
            log = await self._records.open(record)
            task = asyncio.create_task(self._validated(log, engines, report), name=f"eval-{record.job_id}")
            self._active[record.job_id] = _Active(log, task)
        try:
            await task
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait([task])
            raise
        finally:
            del self._active[record.job_id]
            log.feed.end()
        return log.record

    async def _added(
        self, request: evaluation_pb2.CreateEvalJobRequest, run_id: str, step: int, serving: ServingConfig
    ) -> EvalRecord:
        """A validation that was not begun yet, over the problems of the run's earlier ones."""
        kept = ""
        for earlier in (await store.list_validations(self._database, run_id))[:1]:
            if await asyncio.to_thread(Path(earlier.dataset_file).read_bytes) != request.dataset:
                raise FailedPrecondition(
                    request.dataset_name,
                    f"has changed since step {earlier.step} of run {run_id} was validated on it, and steps could not be "
                    "compared: put the file back, or fork the run",
                )
            kept = earlier.dataset_file
        dataset = await asyncio.to_thread(load_dataset, request, request.dataset)
        target = evaluation_pb2.EvalTarget(current=evaluation_pb2.CurrentTarget())
        return await self._records.add(request, dataset, target, serving, run_id, step, dataset_file=kept)

    async def end_validations(self, run_id: str) -> None:
        """End what validations of a run are under way: it was cancelled and goes on with none."""
        for record in await store.list_validations(self._database, run_id):
            if record.state is EvalState.RUNNING:
                log = await self._records.open(record)
                await log.end(EvalState.CANCELLED, f"run {run_id} was cancelled")

    async def cancel(self, job_id: str) -> EvalRecord:
        """End a job; its finished items stay."""
        if job_id not in self._active:
            async with self._starting:
                record = await self._records.get(job_id)
                if job_id not in self._active and record.state is EvalState.RUNNING:
                    # A validation whose run does not run.
                    log = await self._records.open(record)
                    await log.end(EvalState.CANCELLED, _BY_REQUEST)
        active = self._active.get(job_id)
        if active is not None:
            # Once: a second time it would cut off what gives the engines their own weights back.
            if not active.cancelled:
                active.cancelled = True
                if active.begun:
                    active.task.cancel()
            # Waited for, not awaited: a caller that gives up must not undo the job's own end.
            await asyncio.wait([active.task])
        return await self._records.get(job_id)

    async def resume(self, job_id: str) -> EvalRecord:
        """Run what an ended job has left: items that ended in faults of ours, and those that never ran.

        Raises:
            FailedPrecondition: it runs, it is a run's, or nothing is left.
        """
        require(self._engines)
        return await self._carried_out(self._resume(job_id))

    async def _resume(self, job_id: str) -> EvalRecord:
        async with self._starting:
            record = await self._records.get(job_id)
            if record.state is EvalState.RUNNING:
                return await self._going(record)
            if record.run_id:
                raise FailedPrecondition(job_id, f"is a validation of run {record.run_id}: create a job of your own")
            counts = await store.count_items(self._database, job_id)
            request = evaluation_pb2.CreateEvalJobRequest.FromString(record.request)
            if counts.done - counts.faulted == record.problems * request.samples:
                raise FailedPrecondition(job_id, "has a result for every item: nothing is left to run")
            log = await self._records.open(record)
            await log.reopen(keep_items=True)
            self._start(log)
            return log.record

    async def watch(self, job_id: str, after: int) -> AsyncGenerator[evaluation_pb2.EvalEvent, None]:
        """Events after a number, until the job has ended."""
        active = self._active.get(job_id)
        if active is None:
            record = await self._records.get(job_id)
            if record.state is EvalState.RUNNING:
                # It may be about to be started.
                async with self._starting:
                    pass
            active = self._active.get(job_id)
        if active is not None:
            # Nothing is read from the store: a thousand clients may come at once.
            feed = active.log.feed
        else:
            feed = open_feed(self._database, job_id, await store.last_event_id(self._database, job_id))
            feed.end()
        async with contextlib.aclosing(feed.watch(after)) as events:
            async for event in events:
                yield event
        if active is not None:
            if active.log.record.state is EvalState.RUNNING:
                raise Unavailable(f"the job {job_id} stopped with this orchestrator: ask again from the last event")
        elif record.state is EvalState.RUNNING and (await self._records.get(job_id)).state is EvalState.RUNNING:
            if record.run_id or self._engines is None:
                raise FailedPrecondition(job_id, "is not running in this orchestrator")
            raise Unavailable(f"the job {job_id} does not run yet: ask again from the last event")

    async def close(self) -> None:
        """Stop where the jobs stand; they are resumed at the next start."""
        self._closing = True
        tasks = [*self._calls, *(active.task for active in self._active.values())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _carried_out(self, call: Coroutine[Any, Any, EvalRecord]) -> EvalRecord:
        """The answer of a call that puts a job on record as running."""

        async def certainly() -> EvalRecord:
            try:
                return await call
            except StoreUnavailableError:
                # It may be on record all the same.
                self._in_background(self._look_again())
                raise

        return await asyncio.shield(self._in_background(certainly()))

    def _in_background(self, work: Coroutine[Any, Any, _Result]) -> asyncio.Task[_Result]:
        task = asyncio.create_task(work)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        return task

    async def _look_again(self) -> None:
        """Run what is on record as running, once the store is there again."""
        while True:
            await asyncio.sleep(_STORE_PAUSE_SECONDS)
            try:
                return await self.resume_interrupted()
            except StoreUnavailableError as error:
                logger.warning("waiting for the store, to go on with jobs", error=str(error))

    async def _going(self, record: EvalRecord) -> EvalRecord:
        """A job that is on record, started if the call that put it there was cut off before it was."""
        if record.state is EvalState.RUNNING and not record.run_id and record.job_id not in self._active:
            # It may have ended since it was read.
            record = await self._records.get(record.job_id)
            if record.state is EvalState.RUNNING and record.job_id not in self._active:
                await self._launch(record)
        return record

    async def _launch(self, record: EvalRecord) -> None:
        self._start(await self._records.open(record))

    def _start(self, log: JobLog) -> None:
        job_id = log.record.job_id
        self._active[job_id] = _Active(log, asyncio.create_task(self._supervise(log), name=f"eval-{job_id}"))

    async def _supervise(self, log: JobLog) -> None:
        """Run a client's job and record how it ended, however long the store is away meanwhile."""
        job_id = log.record.job_id
        active = self._active[job_id]
        active.begun = True
        lost = False
        try:
            while log.record.state is EvalState.RUNNING:
                try:
                    if lost:
                        log = active.log = await self._reopened(log)
                        lost = False
                    elif active.cancelled:
                        await log.end(EvalState.CANCELLED, _BY_REQUEST)
                    else:
                        await self._run_and_end(log)
                except StoreUnavailableError as error:
                    logger.warning("a job waits for the store", job=job_id, error=str(error))
                    lost = True
                except asyncio.CancelledError:
                    _by_request(active)
        finally:
            del self._active[job_id]
            # Also where the job goes on at the next start: its watchers ask again then.
            log.feed.end()

    async def _reopened(self, log: JobLog) -> JobLog:
        """A job's log as the store has it, once the store is there again; what was stored last is not known."""
        log.feed.end()
        while True:
            await asyncio.sleep(_STORE_PAUSE_SECONDS)
            with contextlib.suppress(StoreUnavailableError):
                record = await self._records.get(log.record.job_id)
                return await self._records.open(record)

    async def _run_and_end(self, log: JobLog) -> None:
        job_id = log.record.job_id
        request = evaluation_pb2.CreateEvalJobRequest.FromString(log.record.request)
        try:
            async with self._boundary if uses_own_engines(request) else contextlib.nullcontext():
                await run_job(log, self._database, require(self._engines), FaultReport(log.tell))
        except (LeaseLostError, StoreUnavailableError):
            raise
        except grpc.RpcError as error:
            await self._fail(log, describe(error))
        except (*_NAMED, ServiceError) as error:
            await self._fail(log, str(error))
        except Exception as error:  # the boundary of a job: whatever ends it is recorded with it
            logger.exception("eval job failed", job=job_id)
            await self._fail(log, f"{type(error).__name__}: {error}")

    async def _fail(self, log: JobLog, reason: str) -> None:
        # What fails while everything is going down, such as giving weights back, is tried again at the next start.
        if self._closing:
            logger.warning("eval job stopped", job=log.record.job_id, reason=reason)
            return
        try:
            await log.end(EvalState.FAILED, reason)
        except SQLAlchemyError as error:
            # The store is there and refuses what it is told: the state has to be told, whatever the words are.
            job_id = log.record.job_id
            logger.error("the store refuses how a job ended", job=job_id, reason=reason, error=str(error))
            shorter = f"why could not be recorded ({type(error).__name__}): the orchestrator's log has it"
            await log.end(EvalState.FAILED, shorter)

    async def _validated(self, log: JobLog, engines: Engines, report: FaultReport) -> None:
        active = self._active[log.record.job_id]
        active.begun = True
        try:
            if not active.cancelled:
                await self._run_validation(log, engines, report)
        except asyncio.CancelledError:
            _by_request(active)
        if active.cancelled and log.record.state is EvalState.RUNNING:
            await log.end(EvalState.CANCELLED, _BY_REQUEST)

    async def _run_validation(self, log: JobLog, engines: Engines, report: FaultReport) -> None:
        try:
            await run_job(log, self._database, engines, report)
        except VersionChangedError as error:
            logger.warning("a validation begins again", job=log.record.job_id, reason=str(error))
            await log.reopen(keep_items=False)
            await run_job(log, self._database, engines, report)


def _not_written(error: FileWriteError) -> ServiceError:
    text = f"{error.strerror}, then create the job again"
    return Exhausted(text, _ROOM_SECONDS) if error.errno in DISK_FULL else Unavailable(text)


def _by_request(active: _Active) -> None:
    """Go on after a cancellation, where it is the job that is to end and not its task.

    Raises:
        CancelledError: nobody asked for that.
    """
    if not active.cancelled:
        raise asyncio.CancelledError
    active.task.uncancel()
