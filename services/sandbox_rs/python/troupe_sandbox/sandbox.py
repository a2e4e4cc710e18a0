"""`Sandbox`: the supervisor in this process. Thin: types in, types out, the work is done by the native side.

Verdicts are lower-case names: ok, wrong_answer, runtime_error, cpu_limit, wall_limit, memory_limit, output_limit,
process_limit, policy_violation, cancelled. The sandbox's own failures are RuntimeError, never a verdict.
"""

import os
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from troupe_workflow.nodes import library

from . import _native, settings


@dataclass(frozen=True)
class Limits:
    """What one program may use; 0 takes the default."""

    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    memory_bytes: int = 0
    processes: int = 0
    open_files: int = 0
    output_bytes: int = 0


@dataclass(frozen=True)
class ResourceUse:
    """What one program used, measured from outside."""

    cpu_seconds: float
    wall_seconds: float
    waiting_seconds: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class Layer:
    """One layer of isolation as it was tried at start."""

    name: str
    active: bool
    errno: int
    detail: str
    remedy: str


@dataclass(frozen=True)
class IsolationReport:
    """The profile in force and all layers."""

    profile: str
    profile_digest: str
    python: str
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class CaseResult:
    """One case of a solution's tests."""

    index: int
    verdict: str
    detail: str
    use: ResourceUse

    @classmethod
    def of(cls, native: Mapping[str, Any]) -> Self:
        return cls(**{**native, "use": ResourceUse(**native["use"])})


@dataclass(frozen=True)
class TestReport:
    """A solution against its tests; `passed` means that every case was run and is ok."""

    __test__ = False  # not a test class, whatever pytest makes of the name

    passed: bool
    cases_passed: int
    cases_run: int
    cases_total: int
    profile: str
    cases: tuple[CaseResult, ...]


@dataclass(frozen=True)
class ToolReport:
    """What a python tool call gave."""

    output: str
    verdict: str
    use: ResourceUse


@dataclass(frozen=True)
class AgentCall:
    """A script asks for one turn of one agent. Messages are dicts with `role` and `content`."""

    call_id: int
    conversation_id: str
    agent: str
    messages: Sequence[Mapping[str, str]]
    tool_run_ids: Sequence[int]


@dataclass(frozen=True)
class ExecutionReport:
    """One execution of a workflow script; `result` is None when it returned none."""

    verdict: str
    result: str | None
    result_type: str | None
    own_question: bool
    error: str
    stdout: str
    stderr: str
    use: ResourceUse
    outstanding_calls: int
    agent_calls: int
    profile: str


def _given(limits: Limits | None) -> dict[str, float] | None:
    return None if limits is None else asdict(limits)


class Sandbox:
    """Zygotes and supervisor of this process. Make it after any fork; it ends with the object.

    `profile` is auto (the strongest there is), full or pod. `require_layers` names layers that must be in force;
    a missing one is a RuntimeError that says what would bring it. `nodes` names workflow nodes of plug-ins that scripts
    can import.
    """

    def __init__(
        self,
        profile: str = "auto",
        require_layers: Sequence[str] = (),
        workflow_slots: int = 64,
        test_slots: int | None = None,
        work_root: Path | None = None,
        nodes: Sequence[str] = (),
    ) -> None:
        slots = test_slots or os.cpu_count() or 1
        root, python = work_root or Path(tempfile.gettempdir()), settings.base_interpreter()
        copies = ExitStack()
        with copies:
            scripting_library = copies.enter_context(library(nodes, root, python))
            self._native = _native.Sandbox(
                settings.collect(profile, require_layers, workflow_slots, slots, root, python, scripting_library)
            )
            weakref.finalize(self, copies.pop_all().close)

    def isolation(self) -> IsolationReport:
        """Which layers are in force."""
        native = self._native.isolation()
        return IsolationReport(**{**native, "layers": tuple(Layer(**layer) for layer in native["layers"])})

    def run_tests(
        self,
        solution: str,
        cases: Sequence[tuple[str, str]] | Sequence[str],
        *,
        checker: str = "tokens",
        setup: str = "",
        limits: Limits | None = None,
        stop_at_first_failure: bool = False,
    ) -> TestReport:
        """Runs a solution against (stdin, expected output) pairs, or against assertions given as source."""
        pairs = [case for case in cases if isinstance(case, tuple)]
        assertions = [case for case in cases if isinstance(case, str)]
        if pairs and assertions:
            raise ValueError("cases are either (stdin, expected output) pairs or assertions, not both")
        if assertions:
            native = self._native.run_assertion_tests(
                solution, assertions, setup, _given(limits), stop_at_first_failure
            )
        else:
            native = self._native.run_stdin_tests(solution, pairs, checker, _given(limits), stop_at_first_failure)
        ordered = sorted(map(CaseResult.of, native["cases"]), key=lambda case: case.index)
        return TestReport(**{**native, "cases": tuple(ordered)})

    def run_tool(self, code: str, limits: Limits | None = None) -> ToolReport:
        """Runs code as an agent's python tool does: what it prints, or else the value of its last expression."""
        native = self._native.run_tool(code, _given(limits))
        return ToolReport(**{**native, "use": ResourceUse(**native["use"])})

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
        """Runs a script. `on_agent_call` plays the agents, from several threads at once; what it raises refuses."""
        native = self._native.run_workflow(
            script,
            question,
            lambda call: on_agent_call(AgentCall(**call)),
            task_type,
            delivery_instruction,
            seed,
            max_agent_calls,
            _given(limits),
            _given(tool_limits),
        )
        return ExecutionReport(**{**native, "use": ResourceUse(**native["use"])})
