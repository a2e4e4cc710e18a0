"""What goes into the sandbox and what comes out of it, as frozen dataclasses.

Verdicts are lower-case names: ok, wrong_answer, runtime_error, cpu_limit, wall_limit, memory_limit, output_limit,
process_limit, policy_violation, cancelled. Each says what the program did; the sandbox's own failures are exceptions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Limits:
    """What one program may use; 0 takes the default of its kind.

    Attributes:
        cpu_seconds: CPU time of the program with its children, seconds.
        wall_seconds: time from its start, seconds; of a workflow script with what it waits for agents, which
            `ResourceUse.waiting_seconds` tells apart.
        memory_bytes: private memory of each of its processes, bytes.
        processes: processes at once, its own included; more than 1 for workflow scripts only.
        open_files: file descriptors of each process.
        output_bytes: bytes that it may write to standard output and standard error, and the size of any file.
    """

    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    memory_bytes: int = 0
    processes: int = 0
    open_files: int = 0
    output_bytes: int = 0


@dataclass(frozen=True)
class ResourceUse:
    """What one program used, measured from outside. Waiting is the wall time in which agents were asked."""

    cpu_seconds: float
    wall_seconds: float
    waiting_seconds: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class Layer:
    """One layer of isolation as it was tried at start; `errno`, `detail` and `remedy` tell of an inactive one."""

    name: str
    active: bool
    errno: int
    detail: str
    remedy: str


@dataclass(frozen=True)
class IsolationReport:
    """The profile in force, a digest of what it is made of, and all layers.

    `outer_layers` are those around the sandbox that it did not put there itself, such as gvisor: active where found.
    """

    profile: str
    profile_digest: str
    python: str
    layers: tuple[Layer, ...]
    outer_layers: tuple[Layer, ...]

    @classmethod
    def of(cls, native: Mapping[str, Any]) -> Self:
        """From what the native side says."""
        layers, outer_layers = (tuple(Layer(**layer) for layer in native[name]) for name in ("layers", "outer_layers"))
        return cls(**{**native, "layers": layers, "outer_layers": outer_layers})


@dataclass(frozen=True)
class Difference:
    """Where output first differs from what is expected.

    Attributes:
        unit: what `place` counts from 1: byte, line or token.
        line, column: of the output, from 1; of the expected output where the output lacks the place.
        got, expected: excerpts around the place, at most 120 characters; None where that side has ended.
    """

    unit: str
    place: int
    line: int
    column: int
    got: str | None
    expected: str | None


@dataclass(frozen=True)
class CaseResult:
    """One case of a solution's tests. `detail` is the first difference, or the end of the traceback.

    `difference` is set for a wrong answer in stdin tests that no checker program has judged.
    """

    index: int
    verdict: str
    detail: str
    use: ResourceUse
    difference: Difference | None

    @classmethod
    def of(cls, native: Mapping[str, Any]) -> Self:
        """From what the native side says."""
        difference = native["difference"] and Difference(**native["difference"])
        return cls(**{**native, "use": ResourceUse(**native["use"]), "difference": difference})


@dataclass(frozen=True)
class TestReport:
    """A solution against its tests; `passed` means that every case was run and is ok. Cases are in order.

    `first_failed` is the lowest index of the cases that were run and failed, None if none did.
    """

    __test__ = False  # not a test class, whatever pytest makes of the name

    passed: bool
    cases_passed: int
    cases_run: int
    cases_total: int
    first_failed: int | None
    profile: str
    cases: tuple[CaseResult, ...]

    @classmethod
    def of(cls, native: Mapping[str, Any]) -> Self:
        """From what the native side says."""
        ordered = sorted(map(CaseResult.of, native["cases"]), key=lambda case: case.index)
        return cls(**{**native, "cases": tuple(ordered)})


@dataclass(frozen=True)
class ToolReport:
    """What a python tool call gave: its output as an agent gets to see it, with the traceback of what it raised."""

    output: str
    verdict: str
    use: ResourceUse
    profile: str

    @classmethod
    def of(cls, native: Mapping[str, Any]) -> Self:
        """From what the native side says."""
        return cls(**{**native, "use": ResourceUse(**native["use"])})


@dataclass(frozen=True)
class AgentCall:
    """A script asks for one turn of one agent. Messages are dicts with `role` and `content`; only new ones are sent."""

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

    @classmethod
    def of(cls, native: Mapping[str, Any]) -> Self:
        """From what the native side says."""
        return cls(**{**native, "use": ResourceUse(**native["use"])})
