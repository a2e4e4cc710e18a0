"""The Training service: a thin shell over `Runs`."""

from collections.abc import AsyncIterator

from google.protobuf.timestamp_pb2 import Timestamp
from troupe.v1 import training_pb2, training_pb2_grpc
from troupe_contracts.calls import Context
from troupe_contracts.errors import InvalidArgument

from troupe_orchestrator.config_origins import describe_config
from troupe_orchestrator.run_config import ConfigError
from troupe_orchestrator.store import runs as store
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.runs import RunRecord
from troupe_orchestrator.traces import trace_execution
from troupe_orchestrator.training.runs import Runs

_MAX_PAGE = 1000


class TrainingServicer(training_pb2_grpc.TrainingServicer):
    """Serves troupe.v1.Training."""

    def __init__(self, runs: Runs, database: Database) -> None:
        self._runs = runs
        self._database = database

    async def CreateRun(self, request: training_pb2.CreateRunRequest, context: Context) -> training_pb2.Run:
        return await self._message(await self._runs.create(request.run_id, request.config))

    async def DescribeConfig(
        self, request: training_pb2.DescribeConfigRequest, context: Context
    ) -> training_pb2.DescribeConfigResponse:
        try:
            values = describe_config(request.config)
        except ConfigError as error:
            raise InvalidArgument.every((f"config.{key}", message) for key, message in error.problems) from error
        return training_pb2.DescribeConfigResponse(
            entries=[
                training_pb2.ConfigEntry(key=value.key, value=value.value, origin=value.origin) for value in values
            ]
        )

    async def GetRun(self, request: training_pb2.GetRunRequest, context: Context) -> training_pb2.Run:
        return await self._message(await self._runs.get(required(request.run_id, "run_id")))

    async def ListRuns(self, request: training_pb2.ListRunsRequest, context: Context) -> training_pb2.ListRunsResponse:
        size = page_size(request.page_size)
        records = await store.list_runs(self._database, size + 1, parse_page_token(request.page_token))
        last = records[size - 1] if len(records) > size else None
        return training_pb2.ListRunsResponse(
            runs=[await self._message(record) for record in records[:size]],
            next_page_token="" if last is None else f"{last.created_at!r}/{last.run_id}",
        )

    async def WatchRun(
        self, request: training_pb2.WatchRunRequest, context: Context
    ) -> AsyncIterator[training_pb2.RunEvent]:
        events = await self._runs.events(required(request.run_id, "run_id"))
        async for event in events.watch(request.after_event_id):
            yield event

    async def PauseRun(self, request: training_pb2.PauseRunRequest, context: Context) -> training_pb2.Run:
        return await self._message(await self._runs.pause(required(request.run_id, "run_id")))

    async def ResumeRun(self, request: training_pb2.ResumeRunRequest, context: Context) -> training_pb2.Run:
        return await self._message(await self._runs.resume(required(request.run_id, "run_id")))

    async def CancelRun(self, request: training_pb2.CancelRunRequest, context: Context) -> training_pb2.Run:
        return await self._message(await self._runs.cancel(required(request.run_id, "run_id")))

    async def GetExecution(
        self, request: training_pb2.GetExecutionRequest, context: Context
    ) -> training_pb2.ExecutionTrace:
        return await trace_execution(self._database, required(request.execution_id, "execution_id"))

    async def _message(self, record: RunRecord) -> training_pb2.Run:
        newest = await store.last_step(self._database, record.run_id)
        return training_pb2.Run(
            run_id=record.run_id,
            state=training_pb2.RunState.Value(f"RUN_STATE_{record.state.upper()}"),
            reason=record.reason,
            config=record.config,
            committed_steps=await store.committed_steps(self._database, record.run_id),
            total_steps=record.total_steps,
            step=0 if newest is None else newest.step,
            step_state=(
                training_pb2.STEP_STATE_UNSPECIFIED
                if newest is None
                else training_pb2.StepState.Value(f"STEP_STATE_{newest.state.upper()}")
            ),
            create_time=timestamp(record.created_at),
            end_time=None if record.ended_at is None else timestamp(record.ended_at),
            folder=record.folder,
        )


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


def timestamp(seconds: float) -> Timestamp:
    """A protobuf timestamp of seconds since the epoch."""
    stamp = Timestamp()
    stamp.FromNanoseconds(int(seconds * 1e9))
    return stamp
