"""The Training service: a thin shell over `Runs` and what is on record."""

import asyncio
from collections.abc import AsyncIterator

from troupe.v1 import training_pb2, training_pb2_grpc
from troupe_contracts.calls import Context
from troupe_contracts.errors import InvalidArgument, NotFound

from troupe_orchestrator.config_origins import describe_config
from troupe_orchestrator.custom_resources.steering import Steering
from troupe_orchestrator.run_config import ConfigError
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.runs import RunRecord
from troupe_orchestrator.store.summaries import get_summary, list_summaries
from troupe_orchestrator.traces import trace_execution
from troupe_orchestrator.training.messages import detailed_run_message, run_message
from troupe_orchestrator.training.plan import description_of
from troupe_orchestrator.training.run_records import RunRecords
from troupe_orchestrator.training.runs import Runs

_MAX_PAGE = 1000


class TrainingServicer(training_pb2_grpc.TrainingServicer):
    """Serves troupe.v1.Training."""

    def __init__(self, runs: Runs, records: RunRecords, database: Database, steering: Steering) -> None:
        self._runs = runs
        self._records = records
        self._database = database
        self._steering = steering

    async def CreateRun(self, request: training_pb2.CreateRunRequest, context: Context) -> training_pb2.Run:
        self._steering.check_new("run_id", request.run_id)
        return await self._message(await self._runs.create(request.run_id, request.config, request.queue))

    async def PlanRun(self, request: training_pb2.PlanRunRequest, context: Context) -> training_pb2.RunPlan:
        return await self._runs.plan(request.config, [description_of(policy) for policy in request.policies])

    async def ForkRun(self, request: training_pb2.ForkRunRequest, context: Context) -> training_pb2.Run:
        parent = required(request.parent_run_id, "parent_run_id")
        self._steering.check_new("run_id", request.run_id)
        return await self._message(
            await self._runs.fork(parent, request.step, request.config, request.run_id, request.queue)
        )

    async def DescribeConfig(
        self, request: training_pb2.DescribeConfigRequest, context: Context
    ) -> training_pb2.DescribeConfigResponse:
        try:
            values = await asyncio.to_thread(describe_config, request.config)
        except ConfigError as error:
            raise InvalidArgument.every((f"config.{key}", message) for key, message in error.problems) from error
        return training_pb2.DescribeConfigResponse(
            entries=[
                training_pb2.ConfigEntry(key=value.key, value=value.value, origin=value.origin) for value in values
            ]
        )

    async def GetRun(self, request: training_pb2.GetRunRequest, context: Context) -> training_pb2.Run:
        summary = await get_summary(self._database, required(request.run_id, "run_id"))
        if summary is None:
            raise NotFound("run", request.run_id)
        return self._with_waits(await detailed_run_message(self._database, summary))

    async def ListRuns(self, request: training_pb2.ListRunsRequest, context: Context) -> training_pb2.ListRunsResponse:
        size = page_size(request.page_size)
        found = await list_summaries(self._database, size + 1, parse_page_token(request.page_token))
        last = found[size - 1].run if len(found) > size else None
        return training_pb2.ListRunsResponse(
            runs=[self._with_waits(run_message(summary)) for summary in found[:size]],
            next_page_token="" if last is None else f"{last.created_at!r}/{last.run_id}",
        )

    async def WatchRun(
        self, request: training_pb2.WatchRunRequest, context: Context
    ) -> AsyncIterator[training_pb2.RunEvent]:
        events = await self._records.events(required(request.run_id, "run_id"))
        async for event in events.watch(request.after_event_id):
            yield event

    async def PauseRun(self, request: training_pb2.PauseRunRequest, context: Context) -> training_pb2.Run:
        await self._check_steering(required(request.run_id, "run_id"), "pause")
        return await self._message(await self._runs.pause(request.run_id))

    async def ResumeRun(self, request: training_pb2.ResumeRunRequest, context: Context) -> training_pb2.Run:
        await self._check_steering(required(request.run_id, "run_id"), "resume")
        return await self._message(await self._runs.resume(request.run_id))

    async def CancelRun(self, request: training_pb2.CancelRunRequest, context: Context) -> training_pb2.Run:
        return await self._message(await self._runs.cancel(required(request.run_id, "run_id")))

    async def GetExecution(
        self, request: training_pb2.GetExecutionRequest, context: Context
    ) -> training_pb2.ExecutionTrace:
        return await trace_execution(self._database, required(request.execution_id, "execution_id"))

    async def _check_steering(self, run_id: str, does: str) -> None:
        # An object's request is on record before its run: asked the other way round, the run could come in between.
        await self._records.get(run_id)
        await self._steering.check(run_id, does)

    async def _message(self, record: RunRecord) -> training_pb2.Run:
        summary = await get_summary(self._database, record.run_id)
        if summary is None:
            raise NotFound("run", record.run_id)
        return self._with_waits(run_message(summary))

    def _with_waits(self, run: training_pb2.Run) -> training_pb2.Run:
        """The run, with what it waits for: that is on record only once the store takes it."""
        if run.state == training_pb2.RUN_STATE_RUNNING:
            run.reason = self._runs.waits_for(run.run_id)
        return run


def required(value: str, field: str) -> str:
    """The value of a field that must be set."""
    if not value:
        raise InvalidArgument(field, "is empty")
    return value


def page_size(requested: int) -> int:
    """The page size to use: 100 unless told, at most 1000."""
    if requested > _MAX_PAGE:
        raise InvalidArgument("page_size", f"is {requested}, the maximum is {_MAX_PAGE}")
    return requested or 100


def parse_page_token(token: str) -> tuple[float, str] | None:
    """(time, id) of the last row of the page before."""
    if not token:
        return None
    moment, _, identifier = token.partition("/")
    try:
        return float(moment), identifier
    except ValueError as error:
        raise InvalidArgument("page_token", f"{token!r} is not a token that a list call returned") from error
