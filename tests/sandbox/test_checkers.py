"""How output is judged: by the sandbox's comparisons, and by checker programs of the caller."""

import grpc
import pytest
from google.rpc import error_details_pb2
from sandboxed import detail, failure, fault, stdin_tests
from troupe.v1 import sandbox_pb2

Verdict = sandbox_pb2.Verdict
PERMUTATION = """
wanted = sorted(stdin.read().split())
got = actual.read().split()
assert sorted(got) == wanted, f"not a permutation of {len(wanted)} words"
assert expected.read() == "any\\n"
"""


def judged(server, solution, *cases, **fields):
    results, outcome = server.run_tests(stdin_tests(solution, *cases, **fields))
    return (
        [Verdict.Name(results[index].verdict).removeprefix("VERDICT_") for index in range(len(cases))],
        results,
        outcome,
    )


@pytest.mark.parametrize(
    ("checker", "printed", "expected", "passes"),
    [
        (sandbox_pb2.CHECKER_UNORDERED_LINES, "b\na\na", "a\nb\na\n", True),
        (sandbox_pb2.CHECKER_UNORDERED_LINES, "b\na", "a\nb\na\n", False),
        (sandbox_pb2.CHECKER_FLOAT_TOKENS, "nan", "nan", True),
        (sandbox_pb2.CHECKER_FLOAT_TOKENS, "nan", "1.0", False),
        (sandbox_pb2.CHECKER_FLOAT_TOKENS, "9" * 5000, "9" * 4999 + "8", False),
        (sandbox_pb2.CHECKER_TOKENS, "１", "1", False),
        (sandbox_pb2.CHECKER_LINES, "x" * 3_000_000, "x" * 3_000_000, True),
        (sandbox_pb2.CHECKER_LINES, "x" * 3_000_000 + "y", "x" * 3_000_000 + "z", False),
    ],
)
def test_each_checker_says_right_or_wrong(undisturbed, checker, printed, expected, passes):
    # Standard input carries the text, so that it need not be in the source.
    solution = "import sys; sys.stdout.write(sys.stdin.read())"
    verdicts, results, _ = judged(undisturbed, solution, (printed, expected), checker=checker)
    assert verdicts == (["OK"] if passes else ["WRONG_ANSWER"])
    assert len(results[0].detail) <= 1024


def test_the_tolerance_is_the_callers(undisturbed):
    tolerance = sandbox_pb2.FloatTolerance(absolute=0.01)
    cases = (("1.009", "1.0"), ("1.011", "1.0"), ("1000.5", "1000.1"))
    verdicts, _, _ = judged(
        undisturbed, "print(input())", *cases, checker=sandbox_pb2.CHECKER_FLOAT_TOKENS, float_tolerance=tolerance
    )
    assert verdicts == ["OK", "WRONG_ANSWER", "WRONG_ANSWER"]


def test_a_checker_program_accepts_by_its_end_and_rejects_by_an_assertion(undisturbed):
    cases = (("c a b", "any\n"), ("stay", "any\n"))
    solution = "words = input().split()\nprint(*(words if len(words) == 1 else words[:-1]))"
    verdicts, results, _ = judged(
        undisturbed, solution, *cases, checker=sandbox_pb2.CHECKER_PROGRAM, checker_program=PERMUTATION
    )
    assert verdicts == ["WRONG_ANSWER", "OK"]
    assert results[0].detail == "the checker rejects it: not a permutation of 3 words"
    assert not results[0].HasField("difference")


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("raise ValueError('mine')", "ValueError: mine"),
        ("assert (", "SyntaxError"),
        ("raise SystemExit(0)", "before it reached its end"),
        ("import os; os._exit(0)", "before it reached its end"),
        ("eval(actual.read())", "before it reached its end"),
        ("while True: pass", "CPU time"),
        ("x = [0] * 10**10", "out of memory"),
        ("open('/etc/passwd')", "Error"),
        ("import socket; socket.socket()", "socket"),
    ],
)
def test_a_checker_that_fails_is_a_fault_of_the_checker_and_no_verdict(undisturbed, program, said):
    request = stdin_tests(
        "print('__import__(\"os\")._exit(0)')",
        ("", ""),
        checker=sandbox_pb2.CHECKER_PROGRAM,
        checker_program=program,
        checker_limits=sandbox_pb2.Limits(cpu_seconds=0.5, memory_bytes=64 << 20),
    )
    error = failure(undisturbed.stub.RunTests(request, timeout=60))
    assert fault(error) == (grpc.StatusCode.FAILED_PRECONDITION, "CHECKER", "false")
    assert detail(error, error_details_pb2.RetryInfo) is None
    assert "checker failed on case 0" in error.details()
    assert said in error.details()


def test_a_solution_that_fails_never_meets_the_checker(undisturbed):
    verdicts, _, _ = judged(
        undisturbed, "1 / 0", ("", ""), checker=sandbox_pb2.CHECKER_PROGRAM, checker_program="raise ValueError"
    )
    assert verdicts == ["RUNTIME_ERROR"]
