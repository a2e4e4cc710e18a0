"""`Sandbox`: the supervisor in this process, for code that waits. `async_sandbox` has its twin for asyncio."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from . import _native
from .checkers import Checker
from .reports import AgentCall, ExecutionReport, IsolationReport, Limits, TestReport, ToolReport
from .supervisor import Supervisor


class Sandbox:
    """Runs model-written Python, isolated, from the calling thread; any number of threads may call at once.

    Use it as a context, or let it end with the object. Waits release the GIL and end on signals such as Ctrl-C. After a
    fork the copy in the child refuses every call: make another there. Each slot takes six open files, so that the
    process's soft limit of these (`ulimit -n`) is raised to the hard one.

    Args:
        profile: auto (the strongest there is), full or pod.
        require_layers: names of layers that must be in force, see `isolation`.
        workflow_slots: scripts at once, at least 1; more of them wait.
        test_slots: test cases at once, at least 1, by default one for each core.
        work_root: folder for work directories, by default the system's temporary one.
        nodes: workflow nodes of plug-ins that scripts can import.
        preload: further modules that tests and tools find loaded, such as numpy.
        python: the interpreter of sandboxed programs, by default the one behind this.

    Raises:
        SandboxError: a layer that the profile or `require_layers` needs is missing; the text says what would bring it.
        ValueError: an option that cannot be, such as more slots than the hard limit of open files has room for.
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
        self._supervisor = Supervisor(
            profile, require_layers, workflow_slots, test_slots, work_root, nodes, preload, python
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all programs and processes. Later calls raise SandboxError; closing again does nothing."""
        self._supervisor.close()

    def isolation(self) -> IsolationReport:
        """Which layers are in force, and what would bring those that are not."""
        return self._supervisor.isolation()

    def run_tests(
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
        """Runs a solution against its tests, each case in a process of its own unless `batch` is set.

        Args:
            solution: a program that reads standard input, or definitions that assertions use.
            cases: (stdin, expected output) pairs, each a tuple or a list, or assertions as Python source.
            checker: how output is compared with what is expected: lines, tokens, float_tokens (off by 1e-6 at most),
                unordered_lines or exact; `FloatTokens(…)` with a tolerance of your own; `CheckerProgram(…)` judges it
                with Python of yours. For pairs only.
            setup: Python that runs before the solution, for assertions only. They see its names as it left them.
            entry_point: the function under test, for assertions only. Where it is given, no other name of the solution
                hides one that Python has, such as `abs`, from an assertion. Only this one may replace a name of `setup`.
            limits: of each case.
            stop_at_first_failure: leave out the cases after the first that fails.
            batch: run pairs in one process, which is faster and lets a solution carry knowledge from case to case; what
                does not plainly pass there is run again in a process of its own.

        Raises:
            ValueError: no cases, both kinds of cases, an option of the other kind, an unknown checker, a tolerance that
                allows nothing, a limit beyond its maximum, a source of more than 1 MiB.
            TypeError: a case that is neither a pair of str nor a str.
            SandboxError: the sandbox itself failed, or the checker program did; this says nothing about the solution.
        """
        job = self._supervisor.tests(solution, cases, checker, setup, entry_point, limits, stop_at_first_failure, batch)
        return TestReport.of(job.wait())

    def run_tool(self, code: str, limits: Limits | None = None) -> ToolReport:
        """Runs code as an agent's python tool does: what it prints, or else the value of its last expression.

        Raises:
            ValueError: a limit beyond its maximum, code of more than 1 MiB.
            SandboxError: the sandbox itself failed.
        """
        return ToolReport.of(self._supervisor.tool(code, limits).wait())

    def run_workflow(
        self,
        script: str,
        question: str,
        on_agent_call: Callable[[AgentCall], str],
        *,
        task_type: str = "math",
        delivery_instruction: str = "",
        seed: int = 0,
        max_agent_calls: int = 256,
        limits: Limits | None = None,
        tool_limits: Limits | None = None,
    ) -> ExecutionReport:
        """Runs a workflow script.

        Args:
            script: Python against the `workflow` library.
            question: what the script finds as `question`.
            on_agent_call: plays the agents, from several threads at once; what it raises becomes the refusal that the
                script sees.
            task_type: math or code.
            delivery_instruction: what agents are told about the form of their answer.
            seed: of the script's random numbers.
            max_agent_calls: calls beyond these are refused.
            limits: of the script with its children.
            tool_limits: of each python tool call.

        Raises:
            ValueError: an unknown task type, a limit beyond its maximum, a script or question of more than 1 MiB, an
                agent's reply beyond that.
            SandboxError: the sandbox itself failed.
        """

        def ask(call: dict[str, Any], reply: _native.Reply) -> None:
            reply.give(on_agent_call(AgentCall(**call)))

        job = self._supervisor.workflow(
            script, question, ask, task_type, delivery_instruction, seed, max_agent_calls, limits, tool_limits
        )
        return ExecutionReport.of(job.wait())
