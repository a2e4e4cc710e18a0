"""The native side. `Sandbox` is wrapped by `troupe_sandbox.Sandbox`; settings and options are JSON."""

from collections.abc import Callable, Mapping
from typing import Any

def serve(options_json: str, settings_json: str) -> None: ...
def serve_zygote() -> str: ...
def probe_layers() -> None: ...
def run_assertions() -> None: ...

class Sandbox:
    def __init__(self, settings_json: str) -> None: ...
    def isolation(self) -> dict[str, Any]: ...
    def run_stdin_tests(
        self,
        solution: str,
        cases: list[tuple[str, str]],
        checker: str,
        limits: Mapping[str, float] | None = None,
        stop_at_first_failure: bool = False,
    ) -> dict[str, Any]: ...
    def run_assertion_tests(
        self,
        solution: str,
        cases: list[str],
        setup: str,
        limits: Mapping[str, float] | None = None,
        stop_at_first_failure: bool = False,
    ) -> dict[str, Any]: ...
    def run_tool(self, code: str, limits: Mapping[str, float] | None = None) -> dict[str, Any]: ...
    def run_workflow(
        self,
        script: str,
        question: str,
        on_agent_call: Callable[[dict[str, Any]], str],
        task_type: str,
        delivery_instruction: str,
        seed: int,
        max_agent_calls: int,
        limits: Mapping[str, float] | None = None,
        tool_limits: Mapping[str, float] | None = None,
    ) -> dict[str, Any]: ...
