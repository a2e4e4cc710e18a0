"""Requests to a sandbox service, and what its errors and metrics say."""

import time
import urllib.request
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from troupe.v1 import sandbox_pb2

DEADLINE = 60.0
ONE_AGENT = """
from workflow import AgentNode, Workflow
flow = Workflow("one")
flow.add_node(AgentNode("solver", "Solve."))
flow.run(question)
"""


def stdin_tests(solution: str, *cases: tuple[str, str], **fields: object) -> sandbox_pb2.RunTestsRequest:
    """A job of stdin cases, compared by tokens where no checker is given."""
    of_tests = {
        key: fields.pop(key) for key in ("float_tolerance", "checker_program", "checker_limits") if key in fields
    }
    tests = sandbox_pb2.StdinTests(
        cases=[sandbox_pb2.StdinCase(stdin=given, expected_stdout=expected) for given, expected in cases],
        checker=fields.pop("checker", sandbox_pb2.CHECKER_TOKENS),
        **of_tests,
    )
    return sandbox_pb2.RunTestsRequest(solution=solution, stdin_tests=tests, **fields)


def failure(call: object) -> grpc.RpcError:
    """The error with which a stream ends."""
    results = []
    try:
        results.extend(call)  # type: ignore[arg-type]
    except grpc.RpcError as error:
        return error
    pytest.fail(f"it ended without an error, after {results}")


def detail(error: grpc.RpcError, kind: type[Message]) -> Any:
    """The detail of that type of an error, None if it has none."""
    packed = dict(error.trailing_metadata()).get("grpc-status-details-bin", b"")
    for each in status_pb2.Status.FromString(packed).details:
        if each.Is(kind.DESCRIPTOR):
            found = kind()
            each.Unpack(found)
            return found
    return None


def fault(error: grpc.RpcError) -> tuple[grpc.StatusCode, str, str]:
    """Code, reason and whether it can be retried, of a failure of the sandbox itself."""
    about = detail(error, error_details_pb2.ErrorInfo)
    assert about is not None, error
    assert about.domain == "sandbox.troupe.v1"
    assert about.metadata["remedy"]
    return error.code(), about.reason, about.metadata["retriable"]


def metrics(target: str) -> dict[str, float]:
    """The value of each sample by its name and labels."""
    with urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Waits for something that is bound to happen."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)
