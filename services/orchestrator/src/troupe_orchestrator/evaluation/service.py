"""The Evaluation service: a thin shell over `EvalJobs`."""

import contextlib
from collections.abc import AsyncIterator

from troupe.v1 import evaluation_pb2, evaluation_pb2_grpc
from troupe_contracts.calls import Context
from troupe_contracts.errors import InvalidArgument

from troupe_orchestrator.custom_resources.steering import Steering
from troupe_orchestrator.evaluation.job_records import JobRecords
from troupe_orchestrator.evaluation.jobs import EvalJobs
from troupe_orchestrator.evaluation.messages import job_message
from troupe_orchestrator.store import evals as store
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.evals import EvalRecord
from troupe_orchestrator.training.service import page_size, parse_page_token, required


class EvaluationServicer(evaluation_pb2_grpc.EvaluationServicer):
    """Serves troupe.v1.Evaluation."""

    def __init__(self, jobs: EvalJobs, records: JobRecords, database: Database, steering: Steering) -> None:
        self._jobs = jobs
        self._records = records
        self._database = database
        self._steering = steering

    async def CreateEvalJob(
        self, request: evaluation_pb2.CreateEvalJobRequest, context: Context
    ) -> evaluation_pb2.EvalJob:
        self._steering.check_new("job_id", request.job_id)
        return await self._message(await self._jobs.create(request))

    async def GetEvalJob(self, request: evaluation_pb2.GetEvalJobRequest, context: Context) -> evaluation_pb2.EvalJob:
        return await self._message(await self._records.get(required(request.job_id, "job_id")))

    async def ListEvalJobs(
        self, request: evaluation_pb2.ListEvalJobsRequest, context: Context
    ) -> evaluation_pb2.ListEvalJobsResponse:
        size = page_size(request.page_size)
        records = await store.list_jobs(self._database, size + 1, parse_page_token(request.page_token))
        last = records[size - 1] if len(records) > size else None
        counts = await store.count_items_of(self._database, [record.job_id for record in records[:size]])
        return evaluation_pb2.ListEvalJobsResponse(
            jobs=[job_message(record, counts[record.job_id]) for record in records[:size]],
            next_page_token="" if last is None else f"{last.created_at!r}/{last.job_id}",
        )

    async def WatchEvalJob(
        self, request: evaluation_pb2.WatchEvalJobRequest, context: Context
    ) -> AsyncIterator[evaluation_pb2.EvalEvent]:
        watch = self._jobs.watch(required(request.job_id, "job_id"), request.after_event_id)
        async with contextlib.aclosing(watch) as events:
            async for event in events:
                yield event

    async def CancelEvalJob(
        self, request: evaluation_pb2.CancelEvalJobRequest, context: Context
    ) -> evaluation_pb2.EvalJob:
        return await self._message(await self._jobs.cancel(required(request.job_id, "job_id")))

    async def ResumeEvalJob(
        self, request: evaluation_pb2.ResumeEvalJobRequest, context: Context
    ) -> evaluation_pb2.EvalJob:
        # An object's request is on record before its job: asked the other way round, the job could come in between.
        await self._records.get(required(request.job_id, "job_id"))
        await self._steering.check(request.job_id, "resume")
        return await self._message(await self._jobs.resume(request.job_id))

    async def ListEvalItems(
        self, request: evaluation_pb2.ListEvalItemsRequest, context: Context
    ) -> evaluation_pb2.ListEvalItemsResponse:
        await self._records.get(required(request.job_id, "job_id"))
        size = page_size(request.page_size)
        items = await store.list_items(self._database, request.job_id, size + 1, _item_token(request.page_token))
        last = items[size - 1] if len(items) > size else None
        return evaluation_pb2.ListEvalItemsResponse(
            items=[evaluation_pb2.EvalItem.FromString(item.payload) for item in items[:size]],
            next_page_token="" if last is None else f"{last.sample}/{last.problem_id}",
        )

    async def _message(self, record: EvalRecord) -> evaluation_pb2.EvalJob:
        return job_message(record, await store.count_items(self._database, record.job_id))


def _item_token(token: str) -> tuple[str, int] | None:
    if not token:
        return None
    sample, _, problem_id = token.partition("/")
    # 32 bits are what the field has; more would not fit the store's integers.
    if not sample.isdecimal() or int(sample) >= 1 << 32:
        raise InvalidArgument("page_token", f"{token!r} is not a token that a list call returned")
    return problem_id, int(sample)
