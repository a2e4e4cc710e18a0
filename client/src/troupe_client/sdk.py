"""Clients of the three public services: `Client` for async code, `SyncClient` for everything else.

    async with Client("127.0.0.1:4100") as client:
        async for event in client.solve("What is 37 * 58 + 12?"):
            print(event)

    with SyncClient("127.0.0.1:4100") as client:
        for run in client.runs():
            print(run.run_id)

A service that asks for credentials gets those of `Client(target, read_identity(token_file=…))`.

Watches survive a lost connection, and the end that a server makes to a stream on which nothing moves: they go on from the
last event that was seen, unless the orchestrator stays away for two minutes. Errors are `grpc.RpcError`;
`troupe_contracts.errors.describe` makes one readable line of each.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import grpc
from troupe.v1 import (
    common_pb2,
    evaluation_pb2,
    evaluation_pb2_grpc,
    solver_pb2,
    solver_pb2_grpc,
    training_pb2,
    training_pb2_grpc,
)
from troupe_contracts.channel import connect
from troupe_contracts.identity import Identity, own

Result = TypeVar("Result")

# How long a watch goes on calling an orchestrator that is away, and how long it waits between: one that was killed comes
# back, and waits for the lease of the one before.
_AWAY_SECONDS: Final = 120.0
# What stood for longer was a connection, if one without events, and no attempt at one.
_CONNECTING_SECONDS: Final = 30.0
_RECONNECT_SECONDS: Final = 0.5
_LOST: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})


class Client:
    """Training, evaluation and solving at one orchestrator.

    Args:
        identity: what to show there; this process's own unless given.
    """

    def __init__(self, target: str, identity: Identity | None = None) -> None:
        self._channel = connect(target, own() if identity is None else identity)
        self._training: training_pb2_grpc.TrainingAsyncStub = training_pb2_grpc.TrainingStub(self._channel)
        self._evaluation: evaluation_pb2_grpc.EvaluationAsyncStub = evaluation_pb2_grpc.EvaluationStub(self._channel)
        self._solver: solver_pb2_grpc.SolverAsyncStub = solver_pb2_grpc.SolverStub(self._channel)

    async def close(self) -> None:
        """Ends the connection."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def solve(
        self,
        question: str,
        task_type: "common_pb2.TaskType.ValueType" = common_pb2.TASK_TYPE_UNSPECIFIED,
        sampling: common_pb2.Sampling | None = None,
    ) -> AsyncIterator[solver_pb2.SolveEvent]:
        """What happens while one question is solved; the last event is the answer."""
        request = solver_pb2.SolveRequest(question=question, task_type=task_type, sampling=sampling)
        async for event in self._solver.Solve(request):
            yield event

    async def create_run(self, config: str, run_id: str = "", queue: bool = False) -> training_pb2.Run:
        """Starts a run; `config` is YAML. The same id and config return the existing run.

        With `queue` it waits for the run that holds the policies; else it is refused, naming that one.
        """
        request = training_pb2.CreateRunRequest(run_id=run_id, config=config, queue=queue)
        return await self._training.CreateRun(request)

    async def plan_run(
        self, config: str, policies: Iterable[training_pb2.PolicyDescription] = ()
    ) -> training_pb2.RunPlan:
        """What a run with this config would take; starts nothing.

        `policies` are what to reckon with where the orchestrator has no services to ask.
        """
        return await self._training.PlanRun(training_pb2.PlanRunRequest(config=config, policies=policies))

    async def fork_run(
        self, parent_run_id: str, step: int, config: str = "", run_id: str = "", queue: bool = False
    ) -> training_pb2.Run:
        """Starts a run from the weights and the optimizer that another had after a step.

        `config` holds the keys that differ from the parent's, YAML; empty goes on with its plan.
        """
        request = training_pb2.ForkRunRequest(
            parent_run_id=parent_run_id, step=step, config=config, run_id=run_id, queue=queue
        )
        return await self._training.ForkRun(request)

    async def describe_config(self, config: str) -> list[training_pb2.ConfigEntry]:
        """Every key of the config that a run would have, with its value and origin."""
        response = await self._training.DescribeConfig(training_pb2.DescribeConfigRequest(config=config))
        return list(response.entries)

    async def get_run(self, run_id: str) -> training_pb2.Run:
        return await self._training.GetRun(training_pb2.GetRunRequest(run_id=run_id))

    async def pause_run(self, run_id: str) -> training_pb2.Run:
        """Stops the run at its next step boundary."""
        return await self._training.PauseRun(training_pb2.PauseRunRequest(run_id=run_id))

    async def resume_run(self, run_id: str) -> training_pb2.Run:
        """Goes on with a paused or failed run."""
        return await self._training.ResumeRun(training_pb2.ResumeRunRequest(run_id=run_id))

    async def cancel_run(self, run_id: str) -> training_pb2.Run:
        return await self._training.CancelRun(training_pb2.CancelRunRequest(run_id=run_id))

    async def runs(self) -> AsyncIterator[training_pb2.Run]:
        """All runs, newest first."""
        token = ""
        while True:
            page = await self._training.ListRuns(training_pb2.ListRunsRequest(page_token=token))
            for run in page.runs:
                yield run
            if not (token := page.next_page_token):
                return

    async def watch_run(self, run_id: str, after_event_id: int = 0) -> AsyncIterator[training_pb2.RunEvent]:
        """The run's events after one, until it has ended."""

        def call(after: int) -> Any:
            return self._training.WatchRun(training_pb2.WatchRunRequest(run_id=run_id, after_event_id=after))

        async for event in _resumed(call, after_event_id):
            yield event

    async def execution(self, execution_id: str) -> training_pb2.ExecutionTrace:
        """One execution, whole, by its id or a prefix of at least six characters."""
        request = training_pb2.GetExecutionRequest(execution_id=execution_id)
        return await self._training.GetExecution(request)

    async def create_eval(self, request: evaluation_pb2.CreateEvalJobRequest) -> evaluation_pb2.EvalJob:
        """Starts an eval job."""
        return await self._evaluation.CreateEvalJob(request)

    async def get_eval(self, job_id: str) -> evaluation_pb2.EvalJob:
        return await self._evaluation.GetEvalJob(evaluation_pb2.GetEvalJobRequest(job_id=job_id))

    async def cancel_eval(self, job_id: str) -> evaluation_pb2.EvalJob:
        """Ends the job; finished items stay."""
        return await self._evaluation.CancelEvalJob(evaluation_pb2.CancelEvalJobRequest(job_id=job_id))

    async def resume_eval(self, job_id: str) -> evaluation_pb2.EvalJob:
        """Runs what an ended job has left: items that ended in infrastructure faults, and those that never ran."""
        return await self._evaluation.ResumeEvalJob(evaluation_pb2.ResumeEvalJobRequest(job_id=job_id))

    async def evals(self) -> AsyncIterator[evaluation_pb2.EvalJob]:
        """All eval jobs, newest first."""
        token = ""
        while True:
            page = await self._evaluation.ListEvalJobs(evaluation_pb2.ListEvalJobsRequest(page_token=token))
            for job in page.jobs:
                yield job
            if not (token := page.next_page_token):
                return

    async def watch_eval(self, job_id: str, after_event_id: int = 0) -> AsyncIterator[evaluation_pb2.EvalEvent]:
        """The job's events after one, with the items that ended, until it has ended."""

        def call(after: int) -> Any:
            return self._evaluation.WatchEvalJob(
                evaluation_pb2.WatchEvalJobRequest(job_id=job_id, after_event_id=after)
            )

        async for event in _resumed(call, after_event_id):
            yield event

    async def eval_items(self, job_id: str) -> AsyncIterator[evaluation_pb2.EvalItem]:
        """The job's finished items, by problem and sample."""
        token = ""
        while True:
            request = evaluation_pb2.ListEvalItemsRequest(job_id=job_id, page_token=token)
            page = await self._evaluation.ListEvalItems(request)
            for item in page.items:
                yield item
            if not (token := page.next_page_token):
                return


class SyncClient:
    """The same methods as `Client` for code without an event loop; what streams there is an iterator here."""

    def __init__(self, target: str, identity: Identity | None = None) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="troupe-client", daemon=True)
        self._thread.start()
        self._client = self._wait(_opened(target, identity))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            return self._wait(result) if asyncio.iscoroutine(result) else self._iterate(result)

        return call

    def close(self) -> None:
        """Ends the connection and the thread behind it."""
        self._wait(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _wait(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _iterate(self, items: AsyncIterator[Result]) -> Iterator[Result]:
        async def advance() -> tuple[bool, Any]:
            try:
                return True, await anext(items)
            except StopAsyncIteration:
                return False, None

        while (step := self._wait(advance()))[0]:
            yield step[1]


async def _opened(target: str, identity: Identity | None) -> Client:
    return Client(target, identity)


async def _resumed(call: Callable[[int], Any], after: int) -> AsyncIterator[Any]:
    """A watch that calls again from the last event when the connection is lost, or ended by the server as idle."""
    away_since: float | None = None
    while True:
        called = time.monotonic()
        try:
            async for event in call(after):
                after = max(after, event.event_id)
                away_since = None
                yield event
        except grpc.aio.AioRpcError as error:
            now = time.monotonic()
            if away_since is None or now - called > _CONNECTING_SECONDS:
                away_since = now
            if error.code() not in _LOST or now - away_since > _AWAY_SECONDS:
                raise
            await asyncio.sleep(_RECONNECT_SECONDS)
        else:
            return
