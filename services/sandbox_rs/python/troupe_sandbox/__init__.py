"""Run model-written Python, isolated.

    from troupe_sandbox import Sandbox

    with Sandbox() as sandbox:
        report = sandbox.run_tests("print(sum(map(int, input().split())))", [("1 2", "3")])
        assert report.passed

`AsyncSandbox` is its twin for asyncio. The same supervisor that the gRPC service serves, in this process:
`python -m troupe_sandbox` is the service.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .async_sandbox import AsyncSandbox
    from .checkers import CheckerProgram, FloatTokens
    from .errors import SandboxError
    from .reports import (
        AgentCall,
        CaseResult,
        Difference,
        ExecutionReport,
        IsolationReport,
        Layer,
        Limits,
        ResourceUse,
        TestReport,
        ToolReport,
    )
    from .sandbox import Sandbox

__all__ = [
    "AgentCall",
    "AsyncSandbox",
    "CaseResult",
    "CheckerProgram",
    "Difference",
    "ExecutionReport",
    "FloatTokens",
    "IsolationReport",
    "Layer",
    "Limits",
    "ResourceUse",
    "Sandbox",
    "SandboxError",
    "TestReport",
    "ToolReport",
]

_MODULES = {
    "AsyncSandbox": "async_sandbox",
    "CheckerProgram": "checkers",
    "FloatTokens": "checkers",
    "Sandbox": "sandbox",
    "SandboxError": "errors",
}


def __getattr__(name: str) -> object:
    """Imported when first asked for: the service needs none of it, and is to be back soon after it was killed."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(f".{_MODULES.get(name, 'reports')}", __name__), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
