"""Run model-written Python, isolated.

    from troupe_sandbox import Sandbox

    with Sandbox() as sandbox:
        report = sandbox.run_tests("print(sum(map(int, input().split())))", [("1 2", "3")])
        assert report.passed

`AsyncSandbox` is its twin for asyncio. The same supervisor that the gRPC service serves, in this process:
`python -m troupe_sandbox` is the service.
"""

from .async_sandbox import AsyncSandbox
from .checkers import CheckerProgram, FloatTokens
from .reports import (
    AgentCall,
    CaseResult,
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
    "ExecutionReport",
    "FloatTokens",
    "IsolationReport",
    "Layer",
    "Limits",
    "ResourceUse",
    "Sandbox",
    "TestReport",
    "ToolReport",
]
