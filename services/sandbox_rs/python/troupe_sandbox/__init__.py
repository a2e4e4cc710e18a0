"""Run model-written Python, isolated.

    from troupe_sandbox import Sandbox

    sandbox = Sandbox()
    report = sandbox.run_tests("print(sum(map(int, input().split())))", [("1 2", "3")])
    assert report.passed

The same supervisor that the gRPC service serves, in this process: `python -m troupe_sandbox` is the service.
"""

from .sandbox import (
    AgentCall,
    CaseResult,
    ExecutionReport,
    IsolationReport,
    Layer,
    Limits,
    ResourceUse,
    Sandbox,
    TestReport,
    ToolReport,
)

__all__ = [
    "AgentCall",
    "CaseResult",
    "ExecutionReport",
    "IsolationReport",
    "Layer",
    "Limits",
    "ResourceUse",
    "Sandbox",
    "TestReport",
    "ToolReport",
]
