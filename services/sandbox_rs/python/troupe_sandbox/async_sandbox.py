"""`AsyncSandbox`: the supervisor in this process, for asyncio. No call blocks the loop; none takes a thread to wait."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Self

from . import _native
from .checkers import Checker
from .errors import SandboxError
from .reports import AgentCall, ExecutionReport, IsolationReport, Limits, TestReport, ToolReport
from .supervisor import Supervisor


class AsyncSandbox:
    """Runs model-written Python, isolated, from asyncio.

        async with AsyncSandbox() as sandbox:
            report = await sandbox.run_tests(solution, cases)

    Starting and closing take fractions of a second and are done by the context. Cancelling a call ends its programs and
    frees their slots. Arguments, reports and errors are those of `Sandbox`; `isolation` waits for nothing.
    """

    def __init__(
        self,
        profile: str = "auto",
        require_layers: Sequence[str] = (),
        workflow_slots: int = 64,
        test_slots: int | None = None,
        work_root: Path | str | None = None,
        nodes: Sequence[str] = (),
        preload: Sequence[str] = (),
        python: Path | str | None = None,
    ) -> None:
        self._options = (profile, require_layers, workflow_slots, test_slots, work_root, nodes, preload, python)
        self._started: Supervisor | None = None

    async def __aenter__(self) -> Self:
        self._started = await asyncio.to_thread(Supervisor, *self._options)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def _supervisor(self) -> Supervisor:
        if self._started is None:
            text = "this AsyncSandbox has not been started: use `async with AsyncSandbox() as sandbox`"
            raise SandboxError(text, "CLOSED")
        return self._started

    async def close(self) -> None:
        """Ends all programs and processes. Later calls raise SandboxError; closing again does nothing."""
        await asyncio.to_thread(self._supervisor.close)

    def isolation(self) -> IsolationReport:
        """Which layers are in force, and what would bring those that are not."""
        return self._supervisor.isolation()

    async def run_tests(
        self,
        solution: str,
        cases: Sequence[Sequence[str]] | Sequence[str],
        *,
        checker: Checker = "tokens",
        setup: str = "",
        entry_point: str = "",
        limits: Limits | None = None,
        stop_at_first_failure: bool = False,
        batch: bool = False,
    ) -> TestReport:
        """`Sandbox.run_tests`."""
        job = self._supervisor.tests(solution, cases, checker, setup, entry_point, limits, stop_at_first_failure, batch)
        return TestReport.of(await _ended(job))

    async def run_tool(self, code: str, limits: Limits | None = None) -> ToolReport:
        """`Sandbox.run_tool`."""
        return ToolReport.of(await _ended(self._supervisor.tool(code, limits)))

    async def run_workflow(
        self,
        script: str,
        question: str,
        on_agent_call: Callable[[AgentCall], Awaitable[str]],
        *,
        task_type: str = "math",
        delivery_instruction: str = "",
        seed: int = 0,
        max_agent_calls: int = 256,
        limits: Limits | None = None,
        tool_limits: Limits | None = None,
    ) -> ExecutionReport:
        """`Sandbox.run_workflow`; `on_agent_call` is a coroutine function, and its calls overlap on this loop.

        Calls that are still being answered when the script ends are cancelled.
        """
        loop = asyncio.get_running_loop()
        answering: set[asyncio.Task[None]] = set()

        async def answer(call: dict[str, Any], reply: _native.Reply) -> None:
            try:
                reply.give(await on_agent_call(AgentCall(**call)))
            # Whatever an agent raises is what the script is told.
            except Exception as error:
                reply.refuse(f"{type(error).__name__}: {error}")

        def begin(call: dict[str, Any], reply: _native.Reply) -> None:
            task = loop.create_task(answer(call, reply))
            answering.add(task)
            task.add_done_callback(answering.discard)

        job = self._supervisor.workflow(
            script,
            question,
            lambda call, reply: _on_loop(loop, begin, call, reply),
            task_type,
            delivery_instruction,
            seed,
            max_agent_calls,
            limits,
            tool_limits,
        )
        try:
            return ExecutionReport.of(await _ended(job))
        finally:
            for task in answering:
                task.cancel()


async def _ended(job: _native.Job) -> dict[str, Any]:
    """The job's result; cancelling the wait cancels the job."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[dict[str, Any]] = loop.create_future()

    def settle(result: dict[str, Any] | None, error: BaseException | None) -> None:
        if future.done():
            return
        if result is None:
            future.set_exception(error or SandboxError("sandbox: a job ended without a result"))
        else:
            future.set_result(result)

    job.start(lambda result, error: _on_loop(loop, settle, result, error))
    try:
        return await future
    finally:
        job.cancel()


def _on_loop(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *arguments: object) -> None:
    """Calls on the loop, from another thread. A loop that has ended wants nothing more."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(call, *arguments)
