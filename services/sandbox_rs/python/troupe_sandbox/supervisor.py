"""The native supervisor of this process: what `Sandbox` and `AsyncSandbox` have in common. Each call makes a job."""

import os
import tempfile
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeGuard

from troupe_workflow.nodes import library

from . import _native, settings
from .checkers import Checker
from .reports import IsolationReport, Limits


class Supervisor:
    """Zygotes, threads and folders; they end with `close`, or with the object."""

    def __init__(
        self,
        profile: str,
        require_layers: Sequence[str],
        workflow_slots: int,
        test_slots: int | None,
        work_root: Path | str | None,
        nodes: Sequence[str],
        preload: Sequence[str],
        python: Path | str | None,
    ) -> None:
        slots = (os.cpu_count() or 1) if test_slots is None else test_slots
        for name, count in (("workflow_slots", workflow_slots), ("test_slots", slots)):
            if count < 1:
                raise ValueError(f"{name} is {count}; at least 1")
        root = Path(tempfile.gettempdir() if work_root is None else work_root)
        python = None if python is None else Path(python)
        copies = ExitStack()
        with copies:
            scripting_library = copies.enter_context(library(nodes, root, python or settings.base_interpreter()))
            self._native = _native.Sandbox(
                settings.collect(
                    profile, require_layers, workflow_slots, slots, root, python, scripting_library, preload
                )
            )
            self._finalize = weakref.finalize(self, copies.pop_all().close)

    def close(self) -> None:
        """Ends all programs and processes; later calls raise SandboxError."""
        self._native.close()
        self._finalize()

    def isolation(self) -> IsolationReport:
        """Which layers are in force."""
        return IsolationReport.of(self._native.isolation())

    def tests(
        self,
        solution: str,
        cases: Sequence[Sequence[str]] | Sequence[str],
        checker: Checker,
        setup: str,
        entry_point: str,
        limits: Limits | None,
        stop_at_first_failure: bool,
        batch: bool,
    ) -> _native.Job:
        """A solution against its tests, as a job."""
        pairs: list[tuple[str, str]] = []
        assertions: list[str] = []
        for index, case in enumerate(cases):
            if isinstance(case, str):
                assertions.append(case)
            elif _is_pair(case):
                pairs.append((case[0], case[1]))
            else:
                raise TypeError(
                    f"cases[{index}] is neither a (stdin, expected output) pair of str nor an assertion as str"
                )
        if pairs and assertions:
            raise ValueError("cases are either (stdin, expected output) pairs or assertions, not both")
        if assertions and batch:
            raise ValueError("batch is for (stdin, expected output) pairs; each assertion has its own process")
        if assertions and checker != "tokens":
            raise ValueError("a checker is for (stdin, expected output) pairs; assertions judge for themselves")
        if pairs and (setup or entry_point):
            raise ValueError(
                "setup and entry_point are for assertions; a program that reads standard input runs by itself"
            )
        if assertions:
            return self._native.assertion_tests(solution, assertions, setup, entry_point, limits, stop_at_first_failure)
        return self._native.stdin_tests(solution, pairs, checker, limits, stop_at_first_failure, batch)

    def tool(self, code: str, limits: Limits | None) -> _native.Job:
        """A python tool call, as a job."""
        return self._native.tool(code, limits)

    def workflow(
        self,
        script: str,
        question: str,
        on_agent_call: Callable[[dict[str, Any], _native.Reply], None],
        task_type: str,
        delivery_instruction: str,
        seed: int,
        max_agent_calls: int,
        limits: Limits | None,
        tool_limits: Limits | None,
    ) -> _native.Job:
        """An execution of a script, as a job."""
        return self._native.workflow(
            script,
            question,
            on_agent_call,
            task_type,
            delivery_instruction,
            seed,
            max_agent_calls,
            limits,
            tool_limits,
        )


def _is_pair(case: object) -> TypeGuard[Sequence[str]]:
    return isinstance(case, tuple | list) and len(case) == 2 and all(isinstance(part, str) for part in case)
