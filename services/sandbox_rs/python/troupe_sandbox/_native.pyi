"""The native side. `Sandbox` is wrapped by `troupe_sandbox.Sandbox`; settings and options are JSON."""

from collections.abc import Callable
from typing import Any, Self, final

from .checkers import Checker
from .reports import Limits

__all__ = [
    "Job",
    "Reply",
    "Sandbox",
    "execute_nothing",
    "has_more_to_do",
    "next_case",
    "probe_layers",
    "run_assertions",
    "serve",
    "serve_zygote",
]

def serve(options_json: str, settings_json: str) -> None: ...
def serve_zygote() -> str: ...
def probe_layers() -> None: ...
def next_case() -> bool: ...
def has_more_to_do() -> bool: ...
def run_assertions() -> None: ...
def execute_nothing() -> None: ...

@final
class Job:
    """One call of a `Sandbox`, not yet begun. It runs once: `wait` for threads, `start` for asyncio."""

    def wait(self) -> dict[str, Any]: ...
    def start(self, done: Callable[[dict[str, Any] | None, BaseException | None], None]) -> None: ...
    def cancel(self) -> None: ...

@final
class Reply:
    """Answers one agent call, from any thread; the first answer counts."""

    def give(self, text: str) -> None: ...
    def refuse(self, reason: str) -> None: ...

@final
class Sandbox:
    def __new__(cls, settings_json: str) -> Self: ...
    def close(self) -> None: ...
    def isolation(self) -> dict[str, Any]: ...
    def stdin_tests(
        self,
        solution: str,
        cases: list[tuple[str, str]],
        checker: Checker,
        limits: Limits | None = None,
        stop_at_first_failure: bool = False,
        batch: bool = False,
    ) -> Job: ...
    def assertion_tests(
        self,
        solution: str,
        cases: list[str],
        setup: str,
        entry_point: str,
        limits: Limits | None = None,
        stop_at_first_failure: bool = False,
    ) -> Job: ...
    def tool(self, code: str, limits: Limits | None = None) -> Job: ...
    def workflow(
        self,
        script: str,
        question: str,
        on_agent_call: Callable[[dict[str, Any], Reply], None],
        task_type: str,
        delivery_instruction: str,
        seed: int,
        max_agent_calls: int,
        limits: Limits | None = None,
        tool_limits: Limits | None = None,
    ) -> Job: ...
