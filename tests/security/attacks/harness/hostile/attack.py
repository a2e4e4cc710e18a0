"""What an attack is: a small program that prints SUCCEEDED when it got what it wanted, how it must end, and what stops it.

`off` names the switches of `services/sandbox_rs/src/layers/weakened.rs` that together let it succeed: its positive
control. Where a profile has more in the way, `off_in_full` adds to them. An attack without `off` says in `no_control` why
nothing can be switched off, and has another control: a `harmless` program or a `careless` grader. Or it has a `plant`: the
control gives the program the thing that it looks for, to show that it would find it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

PROFILES = ("full", "pod")
MEBIBYTE = 1 << 20


class Form(StrEnum):
    """How a program gets into the sandbox."""

    STDIN = "stdin"
    """A solution with one case, which runs in the process that compiled it."""
    CASES = "cases"
    """A solution with two cases, each in a process forked from the one that compiled it."""
    ASSERTION = "assertion"
    TOOL = "tool"
    WORKFLOW = "workflow"


class Verdict(StrEnum):
    """The contract's verdicts, by name."""

    OK = "ok"
    WRONG_ANSWER = "wrong_answer"
    RUNTIME_ERROR = "runtime_error"
    CPU_LIMIT = "cpu_limit"
    WALL_LIMIT = "wall_limit"
    MEMORY_LIMIT = "memory_limit"
    OUTPUT_LIMIT = "output_limit"
    PROCESS_LIMIT = "process_limit"
    POLICY_VIOLATION = "policy_violation"
    FAULT = "fault"
    """No verdict: the sandbox says that it has failed itself."""


class Family(StrEnum):
    """Chapters of the catalogue."""

    RESOURCES = "resources"
    ESCAPE = "escape"
    INTEGRITY = "grader integrity"
    PROTOCOL = "workflow protocol"


@dataclass(frozen=True, slots=True)
class Observed:
    """What the service said of one program."""

    verdict: Verdict
    output: str
    detail: str
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    agent_calls: int = 0

    def printed_success(self) -> bool:
        return "SUCCEEDED" in self.output


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one program; small, because most attacks are to meet them."""

    cpu_seconds: float = 2.0
    wall_seconds: float = 20.0
    memory_bytes: int = 64 * MEBIBYTE
    output_bytes: int = MEBIBYTE
    open_files: int = 64


Ends = Verdict | Mapping[str, Verdict]


@dataclass(frozen=True, slots=True)
class Attack:
    """One hostile program."""

    number: int
    """Of the catalogue; several programs may share one."""
    name: str
    family: Family
    program: str
    ends: Ends
    """How it must end: one verdict, or by form, by profile; the key "" is for all others."""
    off: tuple[str, ...] = ()
    off_in_full: tuple[str, ...] = ()
    no_control: str = ""
    no_control_in_full: str = ""
    harmless: str = ""
    """The same program but for what is refused in it. It succeeds, so that nothing else was refused."""
    careless: str = ""
    """A grader for a plain interpreter, with the program as its argument, that prints SUCCEEDED where it is taken in."""
    prelude: bool = True
    """Names that programs share come before its own first line."""
    plant: str = ""
    """A pattern of what the program looks for, with {} for a number that it cannot guess."""
    forms: tuple[Form, ...] = (Form.STDIN, Form.CASES, Form.TOOL, Form.WORKFLOW)
    limits: Limits = field(default_factory=Limits)
    first: str = ""
    """A program that runs, and ends, before it; `told` is what it printed as a tool or a script."""
    case: str = "assert solve() == 42"
    batch: bool = False
    """It succeeds in batch mode, where the cases of a solution share a process: the control of what strict mode stops."""
    victim: bool = False
    """Another program of the same service sleeps beside it."""
    answered: bool = True
    """Its agent calls get replies."""
    max_agent_calls: int = 0
    uncovered: Mapping[str, str] = field(default_factory=dict)
    """By profile: why the attack succeeds there. The documentation says so, and the test sees that it does."""
    success: Callable[[Observed], bool] = Observed.printed_success

    @property
    def slug(self) -> str:
        return f"{self.number:02d}-{self.name.replace(' ', '-')}"

    def expected(self, form: Form, profile: str) -> Verdict:
        if isinstance(self.ends, Verdict):
            return self.ends
        for key in (str(form), profile, ""):
            if key in self.ends:
                return self.ends[key]
        raise KeyError(f"{self.slug} does not say how it ends as {form} under {profile}")

    def switched_off(self, profile: str) -> tuple[str, ...]:
        return self.off + self.off_in_full if profile == "full" else self.off

    def has_control(self, profile: str) -> bool:
        if profile in self.uncovered or (profile == "full" and self.no_control_in_full):
            return False
        return bool(self.plant or self.switched_off(profile))
