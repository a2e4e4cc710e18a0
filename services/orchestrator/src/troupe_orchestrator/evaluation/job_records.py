"""Eval jobs on record: added with the file of their data set, found again by id, their logs opened."""

import asyncio
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from troupe.v1 import evaluation_pb2
from troupe_contracts.errors import FailedPrecondition, NotFound

from troupe_orchestrator.datasets.loading import LoadedDataset
from troupe_orchestrator.evaluation.job_log import JobLog, first_event
from troupe_orchestrator.run_config import ServingConfig
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.evals import EvalRecord, EvalState, create_job, get_job
from troupe_orchestrator.store.files import write_bytes


class JobRecords:
    """All eval jobs of a store, each with a folder for its files."""

    def __init__(self, database: Database, data_dir: Path) -> None:
        self._database = database
        self._data_dir = data_dir
        self._listeners: list[Callable[[str], None]] = []

    def on_change(self, listener: Callable[[str], None]) -> None:
        """Have `listener` called with a job's id after each of its events. It must not block."""
        self._listeners.append(listener)

    async def get(self, job_id: str) -> EvalRecord:
        """One job.

        Raises:
            NotFound: there is none with this id.
        """
        record = await get_job(self._database, job_id)
        if record is None:
            raise NotFound("eval job", job_id)
        return record

    async def existing(self, request: evaluation_pb2.CreateEvalJobRequest) -> EvalRecord | None:
        """The job with the request's id.

        Raises:
            FailedPrecondition: it was created by another request.
        """
        existing = await get_job(self._database, request.job_id) if request.job_id else None
        if existing is None:
            return None
        same_dataset = await asyncio.to_thread(Path(existing.dataset_file).read_bytes) == request.dataset
        if not same_dataset or existing.request != _without_dataset(request):
            raise FailedPrecondition(request.job_id, "exists with another request; choose another job_id")
        return existing

    async def add(
        self,
        request: evaluation_pb2.CreateEvalJobRequest,
        dataset: LoadedDataset,
        target: evaluation_pb2.EvalTarget,
        serving: ServingConfig,
        run_id: str = "",
        step: int = 0,
        votes: float = 0.0,
        dataset_file: str = "",
    ) -> EvalRecord:
        """Keep a job's data set and put the job on record as running.

        Args:
            target: what is evaluated, as it was resolved.
            run_id: of the run whose validation it is, after a step of it.
            votes: of an item of mode MAJORITY; 0 in other modes.
            dataset_file: where the data set lies already, if it does.

        Raises:
            FileWriteError: the data set could not be written; there is no job.
        """
        job_id = request.job_id or f"eval-{uuid.uuid4().hex[:8]}"
        if not dataset_file:
            dataset_file = str(self._folder(job_id) / "dataset")
            await asyncio.to_thread(write_bytes, Path(dataset_file), request.dataset)
        record = EvalRecord(
            job_id=job_id,
            state=EvalState.RUNNING,
            reason="",
            request=_without_dataset(request),
            dataset_file=dataset_file,
            problems=len(dataset.tasks),
            errors=tuple((error.file, error.line, error.message) for error in dataset.errors),
            versions={},
            summary=None,
            created_at=time.time(),
            ended_at=None,
            target=target.SerializeToString(deterministic=True),
            serving=serving.model_dump_json(),
            run_id=run_id,
            step=step,
            votes=votes,
        )
        await create_job(self._database, record, first_event(record))
        return record

    async def open(self, record: EvalRecord) -> JobLog:
        """The log of a job."""
        return await JobLog.open(self._database, record, self._folder(record.job_id), self._tell)

    def _tell(self, job_id: str) -> None:
        for listener in self._listeners:
            listener(job_id)

    def _folder(self, job_id: str) -> Path:
        return (self._data_dir / "evals" / job_id).resolve()


def _without_dataset(request: evaluation_pb2.CreateEvalJobRequest) -> bytes:
    """The request as it is kept; the data set is a file."""
    kept = evaluation_pb2.CreateEvalJobRequest()
    kept.CopyFrom(request)
    kept.ClearField("dataset")
    return kept.SerializeToString(deterministic=True)
