"""A task's tests become a request, and the sandbox's answer a grade; what it fails at is never the solution's doing."""

import pytest
from troupe.v1 import sandbox_pb2
from troupe_orchestrator.datasets.task import AssertionTests, Checker, MathReference, StdinTests, Task
from troupe_orchestrator.grading.code_grading import grade_outcome, refusal, run_tests_request
from troupe_orchestrator.grading.grades import Correct, GraderFault, Incorrect

PROGRAM = Task("p", "prog", "code", "q", StdinTests((("1 2\n", "3\n"), ("2 2\n", "4\n")), Checker.FLOAT_TOKENS))
FUNCTION = Task("f", "mbpp", "code", "q", AssertionTests("import math", ("assert f(1) == 2",), "f"))


def outcome(passed: bool, cases_passed: int, run: int, total: int) -> sandbox_pb2.TestsOutcome:
    return sandbox_pb2.TestsOutcome(passed=passed, cases_passed=cases_passed, cases_run=run, cases_total=total)


def result(index: int, verdict: sandbox_pb2.Verdict.ValueType) -> sandbox_pb2.CaseResult:
    return sandbox_pb2.CaseResult(index=index, verdict=verdict)


def test_all_tests_are_sent() -> None:
    request = run_tests_request(PROGRAM, "print(3)", "job", sandbox_pb2.Limits(cpu_seconds=3))
    assert [(case.stdin, case.expected_stdout) for case in request.stdin_tests.cases] == [
        ("1 2\n", "3\n"),
        ("2 2\n", "4\n"),
    ]
    assert request.stdin_tests.checker == sandbox_pb2.CHECKER_FLOAT_TOKENS
    assert (request.job_id, request.solution, request.limits.cpu_seconds) == ("job", "print(3)", 3)
    assertions = run_tests_request(FUNCTION, "x", "job", sandbox_pb2.Limits()).assertion_tests
    assert (assertions.setup, list(assertions.cases)) == ("import math", ["assert f(1) == 2"])


def test_a_math_task_has_no_tests_to_send() -> None:
    with pytest.raises(ValueError, match="graded against a value"):
        run_tests_request(Task("m", "calc", "math", "q", MathReference("1")), "x", "job", sandbox_pb2.Limits())


def test_a_pass_of_all_tests_is_correct() -> None:
    results = [result(0, sandbox_pb2.VERDICT_OK), result(1, sandbox_pb2.VERDICT_OK)]
    assert grade_outcome(PROGRAM, results, outcome(True, 2, 2, 2)) == Correct()


def test_a_failed_test_is_incorrect_and_named() -> None:
    results = [result(0, sandbox_pb2.VERDICT_OK), result(1, sandbox_pb2.VERDICT_CPU_LIMIT)]
    assert grade_outcome(PROGRAM, results, outcome(False, 1, 2, 2)) == Incorrect("test 2 of 2: cpu_limit")


@pytest.mark.parametrize(
    ("results", "answer"),
    [
        ([], None),
        ([], outcome(True, 0, 0, 0)),
        ([result(0, sandbox_pb2.VERDICT_OK)], outcome(True, 1, 1, 2)),
        ([result(0, sandbox_pb2.VERDICT_WRONG_ANSWER)], outcome(True, 2, 2, 2)),
        ([result(0, sandbox_pb2.VERDICT_CANCELLED)], outcome(False, 0, 1, 2)),
        ([], outcome(False, 0, 0, 2)),
    ],
)
def test_an_answer_that_does_not_add_up_is_a_fault_and_never_a_pass(
    results: list[sandbox_pb2.CaseResult], answer: sandbox_pb2.TestsOutcome | None
) -> None:
    assert isinstance(grade_outcome(PROGRAM, results, answer), GraderFault)


@pytest.mark.parametrize("solution", ["", " \n", "x" * ((1 << 20) + 1), "print('\ud800')", "x = '\0'"])
def test_a_solution_that_cannot_be_sent_is_incorrect(solution: str) -> None:
    assert isinstance(refusal(solution), Incorrect)
    assert refusal("print(1)") is None
