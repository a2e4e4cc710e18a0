"""Grades programs: a task's hidden tests become a request to the sandbox, and what it says becomes a grade.

The edge to the sandbox's contract. All tests count; none are chosen. What the solution does is its own doing and graded;
what the sandbox fails at is a fault.
"""

from __future__ import annotations

from troupe.v1 import sandbox_pb2, sandbox_pb2_grpc

from troupe_orchestrator.datasets.task import AssertionTests, Checker, MathReference, StdinTests, Task
from troupe_orchestrator.grading.grades import Correct, Grade, GraderFault, Incorrect

MAX_SOLUTION_BYTES = 1 << 20
"""The sandbox takes no longer source."""

_CHECKERS = {
    Checker.LINES: sandbox_pb2.CHECKER_LINES,
    Checker.TOKENS: sandbox_pb2.CHECKER_TOKENS,
    Checker.FLOAT_TOKENS: sandbox_pb2.CHECKER_FLOAT_TOKENS,
    Checker.EXACT: sandbox_pb2.CHECKER_EXACT,
}


def refusal(solution: str) -> Incorrect | None:
    """Why a solution cannot be sent to the sandbox at all, which is its own doing; None if it can."""
    if not solution.strip():
        return Incorrect("the solution is empty")
    try:
        size = len(solution.encode())
    except UnicodeEncodeError as error:
        return Incorrect(f"the solution is no Unicode text: {error}")
    if size > MAX_SOLUTION_BYTES:
        return Incorrect(f"the solution has {size} bytes, more than {MAX_SOLUTION_BYTES}")
    if "\0" in solution:
        return Incorrect("the solution holds a NUL character")
    return None


def run_tests_request(
    task: Task, solution: str, job_id: str, limits: sandbox_pb2.Limits
) -> sandbox_pb2.RunTestsRequest:
    """All hidden tests of a code task as one job, which ends at the first that fails.

    Args:
        limits: of each case; the sandbox's defaults where 0.

    Raises:
        ValueError: the task is no code task.
    """
    request = sandbox_pb2.RunTestsRequest(job_id=job_id, solution=solution, limits=limits, stop_at_first_failure=True)
    match task.reference:
        case StdinTests(cases, checker):
            request.stdin_tests.checker = _CHECKERS[checker]
            request.stdin_tests.cases.extend(
                sandbox_pb2.StdinCase(stdin=stdin, expected_stdout=expected) for stdin, expected in cases
            )
        case AssertionTests(setup, assertions, entry_point):
            request.assertion_tests.setup = setup
            request.assertion_tests.entry_point = entry_point
            request.assertion_tests.cases.extend(assertions)
        case MathReference():
            raise ValueError(f"task {task.task_id} is graded against a value, not by tests")
    return request


def grade_outcome(task: Task, results: list[sandbox_pb2.CaseResult], outcome: sandbox_pb2.TestsOutcome | None) -> Grade:
    """What the sandbox's answer means.

    Args:
        results: of the cases, as they came.
        outcome: the last message; None if the stream ended without one.
    """
    if outcome is None:
        return GraderFault("the sandbox ended the stream without an outcome")
    total = len(task.reference.cases) if not isinstance(task.reference, MathReference) else 0
    if outcome.cases_total != total:
        return GraderFault(f"the sandbox counted {outcome.cases_total} tests of {total}")
    failed = next((result for result in results if result.verdict != sandbox_pb2.VERDICT_OK), None)
    if failed is not None and failed.verdict == sandbox_pb2.VERDICT_CANCELLED:
        return GraderFault(f"test {failed.index} was cancelled")
    if outcome.passed:
        if failed is not None or outcome.cases_run != total or outcome.cases_passed != total:
            return GraderFault(
                f"the sandbox reports a pass with {outcome.cases_passed} of {outcome.cases_run} tests run, {total} due"
            )
        return Correct()
    if failed is None:
        return GraderFault("the sandbox reports a failure and no test that failed")
    verdict = sandbox_pb2.Verdict.Name(failed.verdict).removeprefix("VERDICT_").lower()
    return Incorrect(f"test {failed.index + 1} of {total}: {verdict}")


async def run_tests(
    sandbox: sandbox_pb2_grpc.SandboxAsyncStub, task: Task, request: sandbox_pb2.RunTestsRequest, timeout_seconds: float
) -> Grade:
    """Run all hidden tests of a task on a solution.

    Args:
        request: made by `run_tests_request`.
        timeout_seconds: deadline of the whole job; beyond it is a fault.

    Raises:
        grpc.RpcError: the sandbox failed, which is never the solution's doing.
    """
    results: list[sandbox_pb2.CaseResult] = []
    outcome: sandbox_pb2.TestsOutcome | None = None
    async for response in sandbox.RunTests(request, timeout=timeout_seconds):
        match response.WhichOneof("message"):
            case "case_result":
                results.append(response.case_result)
            case "outcome":
                outcome = response.outcome
    return grade_outcome(task, results, outcome)
