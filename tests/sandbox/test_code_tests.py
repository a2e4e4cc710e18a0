"""Solutions against their tests: verdicts of each kind, and solutions that claim to pass."""

import pytest
from troupe.v1 import sandbox_pb2

Verdict = sandbox_pb2.Verdict
SHORT = sandbox_pb2.Limits(cpu_seconds=0.5, wall_seconds=5, memory_bytes=64 << 20, output_bytes=100_000)


def stdin_request(solution: str, *cases: tuple[str, str], **fields: object) -> sandbox_pb2.RunTestsRequest:
    checker = fields.pop("checker", sandbox_pb2.CHECKER_TOKENS)
    tests = sandbox_pb2.StdinTests(
        cases=[sandbox_pb2.StdinCase(stdin=given, expected_stdout=expected) for given, expected in cases],
        checker=checker,
    )
    return sandbox_pb2.RunTestsRequest(solution=solution, stdin_tests=tests, **{"limits": SHORT, **fields})


def assertion_request(
    solution: str, *cases: str, setup: str = "", entry_point: str = ""
) -> sandbox_pb2.RunTestsRequest:
    tests = sandbox_pb2.AssertionTests(setup=setup, cases=cases, entry_point=entry_point)
    return sandbox_pb2.RunTestsRequest(solution=solution, assertion_tests=tests, limits=SHORT)


def test_right_output_passes_and_wrong_output_names_the_place(undisturbed):
    results, outcome = undisturbed.run_tests(
        stdin_request("print(sum(map(int, input().split())))", ("1 2\n", "3"), ("2 2", "5"))
    )
    assert results[0].verdict == Verdict.VERDICT_OK
    assert results[1].verdict == Verdict.VERDICT_WRONG_ANSWER
    assert results[1].detail == 'token 1 (line 1, column 1): got "4", expected "5"'
    assert not outcome.passed
    assert (outcome.cases_passed, outcome.cases_run, outcome.cases_total) == (1, 2, 2)
    assert outcome.profile == undisturbed.profile


@pytest.mark.parametrize(
    ("solution", "verdict", "said"),
    [
        ("1 / 0", Verdict.VERDICT_RUNTIME_ERROR, "ZeroDivisionError"),
        ("print(", Verdict.VERDICT_RUNTIME_ERROR, "SyntaxError"),
        ("print('right'); raise SystemExit(3)", Verdict.VERDICT_RUNTIME_ERROR, "exit status 3"),
        ("print('right', flush=True); 1 / 0", Verdict.VERDICT_RUNTIME_ERROR, "ZeroDivisionError"),
        ("while True: pass", Verdict.VERDICT_CPU_LIMIT, "0.500 s"),
        ("import time; time.sleep(60)", Verdict.VERDICT_WALL_LIMIT, "1.500 s"),
        ("x = [0] * 10**9", Verdict.VERDICT_MEMORY_LIMIT, "MemoryError"),
        ("while True: print('right' * 100)", Verdict.VERDICT_OUTPUT_LIMIT, "100000 bytes"),
        ("import os; os.fork()", Verdict.VERDICT_PROCESS_LIMIT, ""),
        ("import subprocess; subprocess.run(['python'])", Verdict.VERDICT_PROCESS_LIMIT, ""),
        ("import os; os.execv('/bin/true', ['true'])", Verdict.VERDICT_POLICY_VIOLATION, "execve"),
        ("import socket; socket.socket()", Verdict.VERDICT_POLICY_VIOLATION, "socket"),
        ("import os; os.kill(os.getppid() or -1, 9)", Verdict.VERDICT_RUNTIME_ERROR, ""),
        ("open('note', 'w')", Verdict.VERDICT_RUNTIME_ERROR, "Error"),
        ("open('/etc/passwd')", Verdict.VERDICT_RUNTIME_ERROR, "Error"),
        ("import sys; sys.setrecursionlimit(10**9)\ndef f(): f()\nf()", Verdict.VERDICT_RUNTIME_ERROR, ""),
        ("import ctypes; ctypes.string_at(0)", Verdict.VERDICT_RUNTIME_ERROR, "signal 11"),
        ("import os; print('wrong'); os._exit(0)", Verdict.VERDICT_WRONG_ANSWER, ""),
        ("import os; print('right', flush=True); os._exit(0)", Verdict.VERDICT_OK, ""),
    ],
)
def test_each_ending_has_its_verdict(undisturbed, solution, verdict, said):
    limits = sandbox_pb2.Limits(cpu_seconds=0.5, wall_seconds=1.5, memory_bytes=256 << 20, output_bytes=100_000)
    if verdict == Verdict.VERDICT_CPU_LIMIT or "recursion" in solution:
        limits.wall_seconds = 20  # a loaded machine gives CPU time slowly
    results, outcome = undisturbed.run_tests(stdin_request(solution, ("", "right"), limits=limits))
    # Deep recursion may exhaust memory before the stack; both are the program's doing.
    if "setrecursionlimit" in solution:
        assert results[0].verdict in (verdict, Verdict.VERDICT_MEMORY_LIMIT, Verdict.VERDICT_CPU_LIMIT)
    else:
        assert results[0].verdict == verdict, results[0]
    assert said in results[0].detail
    assert outcome.passed == (verdict == Verdict.VERDICT_OK)


def test_a_big_stack_in_a_thread_works(undisturbed):
    solution = """
import sys, threading
sys.setrecursionlimit(10**6)
threading.stack_size(64 << 20)
def depth(n): return 0 if n == 0 else 1 + depth(n - 1)
thread = threading.Thread(target=lambda: print(depth(50_000)))
thread.start()
thread.join()
"""
    limits = sandbox_pb2.Limits(cpu_seconds=3, memory_bytes=256 << 20)
    results, outcome = undisturbed.run_tests(stdin_request(solution, ("", "50000"), limits=limits))
    assert outcome.passed, results


def test_the_first_failure_can_end_the_job(undisturbed):
    cases = [("x", "x")] * 3 + [("y", "z")] + [("x", "x")] * 40
    request = stdin_request("print(input())", *cases, stop_at_first_failure=True)
    results, outcome = undisturbed.run_tests(request)
    assert not outcome.passed
    assert outcome.cases_run == len(results) < 44
    assert outcome.cases_total == 44
    assert [index for index, result in results.items() if result.verdict != Verdict.VERDICT_OK] == [3]


@pytest.mark.parametrize(
    ("checker", "expected", "passes"),
    [
        (sandbox_pb2.CHECKER_LINES, "1 2 \n3", True),
        (sandbox_pb2.CHECKER_LINES, "1\n2 3", False),
        (sandbox_pb2.CHECKER_TOKENS, "1\n2 3", True),
        (sandbox_pb2.CHECKER_FLOAT_TOKENS, "1.0000000001 2 3", True),
        (sandbox_pb2.CHECKER_EXACT, "1 2\n3\n", True),
        (sandbox_pb2.CHECKER_EXACT, "1 2\n3", False),
    ],
)
def test_checkers_compare_as_they_say(undisturbed, checker, expected, passes):
    _, outcome = undisturbed.run_tests(stdin_request("print('1 2'); print(3)", ("", expected), checker=checker))
    assert outcome.passed == passes


def test_assertions_pass_fail_and_raise(undisturbed):
    solution = "def double(x):\n    return x * FACTOR"
    results, outcome = undisturbed.run_tests(
        assertion_request(
            solution, "assert double(2) == 4", "assert double(2) == 5, 'two'", "double()", setup="FACTOR = 2"
        )
    )
    verdicts = [results[index].verdict for index in range(3)]
    assert verdicts == [Verdict.VERDICT_OK, Verdict.VERDICT_WRONG_ANSWER, Verdict.VERDICT_RUNTIME_ERROR]
    assert "two" in results[1].detail
    assert "TypeError" in results[2].detail
    assert not outcome.passed


@pytest.mark.parametrize(
    "solution",
    [
        "import os; os._exit(0)",
        "import sys; sys.exit(0)",
        "raise SystemExit",
        "def f(): import os; os._exit(0)",
        "def f(): raise SystemExit(0)",
        "import atexit, os; atexit.register(os._exit, 0)\ndef f(): return 0",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)\ndef f(): return 0",
        "import sys; sys.excepthook = lambda *_: None\ndef f(): return 0",
        "import builtins; builtins.AssertionError = SystemExit\ndef f(): return 0",
        "import builtins; builtins.compile = builtins.exec = lambda *a, **k: None\ndef f(): return 0",
        "AssertionError = SystemExit\ndef f(): return 0",
        "import os\nfor n in range(3, 1024):\n    try: os.write(n, b'passed')\n    except OSError: pass\nos._exit(0)",
        "import sys; native = sys._getframe(1).f_globals.get('native') if sys._getframe(0).f_back else None\n"
        "import os\ntry: native.run_assertions()\nfinally: os._exit(0)",
        "import gc, os, types\n"
        "for o in gc.get_objects():\n"
        "    if type(o).__name__ == 'builtin_function_or_method' and o.__name__ == 'run_assertions':\n"
        "        try: o()\n        except BaseException: pass\n"
        "os._exit(0)",
    ],
)
def test_a_solution_that_leaves_before_the_last_assertion_does_not_pass(undisturbed, solution):
    results, outcome = undisturbed.run_tests(assertion_request(solution, "assert f() == 1"))
    assert results[0].verdict != Verdict.VERDICT_OK, results[0]
    assert not outcome.passed


@pytest.mark.parametrize(
    ("setup", "solution", "entry_point"),
    [
        ("def right(x): return x == 1", "def right(x): return True\ndef f(): return 0", "f"),
        ("def right(x): return x == 1", "def right(x): return True\ndef f(): return 0", ""),
        ("from math import isclose as right", "def right(x): return True\ndef f(): return 0", "f"),
        ("right = bool", "globals().update(right=lambda x: True)\ndef f(): return 0", "f"),
        ("right = bool", "del right\ndef f(): return 0", "f"),
        ("def right(x): return x == 1", "right.__code__ = (lambda x: True).__code__\ndef f(): return 0", "f"),
        ("def one(): return 1\ndef right(x): return x == one()", "def one(): return 0\ndef f(): return 0", "f"),
        ("def right(x, *, is_=1): return x == is_", "def right(x): return True\ndef f(): return 0", "f"),
        ("def right(x): return abs(x - 1) < 1", "def abs(x): return 0\ndef f(): return 0", "f"),
        ("", "def right(x): return True\ndef f(): return 0\nabs = all = len = set = lambda *_: right", "f"),
    ],
)
def test_a_solution_hides_no_name_of_the_setup_and_none_of_pythons_from_a_case(
    undisturbed, setup, solution, entry_point
):
    case = "assert right(f())" if setup else "assert all([f()]) and len({1}) and set((f(),)) == {1} and abs(f()) == 1"
    results, outcome = undisturbed.run_tests(assertion_request(solution, case, setup=setup, entry_point=entry_point))
    assert results[0].verdict != Verdict.VERDICT_OK, results[0]
    assert not outcome.passed


@pytest.mark.parametrize(
    ("setup", "solution", "case", "entry_point"),
    [
        # Of the same name as Python's, asked for or not known to be.
        ("", "def sum(a, b): return a * b", "assert sum(2, 3) == 6", "sum"),
        ("", "def sum(a, b): return a * b", "assert sum(2, 3) == 6", ""),
        ("def f(): raise NotImplementedError", "def f(): return 1", "assert f() == 1", "f"),
        # A solution's own names stay its own.
        ("def g(): return 1", "def g(): return 2\ndef f(): return g()", "assert (f(), g()) == (2, 1)", "f"),
        ("", "def max(*_): return 7\ndef f(): return max(1, 2)", "assert (f(), max(1, 2)) == (7, 2)", "f"),
        # One that hides nothing has one namespace with the case.
        ("", "def f(): return later", "later = 3\nassert f() == 3", "f"),
        ("import math", "import math\ndef f(): return later", "later = 3\nassert f() == 3", "f"),
        ("", "class Node: pass\ndef f(): return Node()", "assert isinstance(f(), Node)", "f"),
    ],
)
def test_what_a_solution_is_asked_to_define_is_seen_by_a_case(undisturbed, setup, solution, case, entry_point):
    results, outcome = undisturbed.run_tests(assertion_request(solution, case, setup=setup, entry_point=entry_point))
    assert outcome.passed, results


def test_expected_output_is_nowhere_in_the_process(undisturbed):
    solution = """
import gc, os
secret = "ninety" + "-nine"
holders = [o.values() if isinstance(o, dict) else o for o in gc.get_objects() if isinstance(o, (dict, list, tuple))]
found = [holder for holder in holders if any(type(o) is str and o is not secret and secret in o for o in holder)]
for descriptor in range(1024):
    try:
        os.lseek(descriptor, 0, 0)
        found += [b for b in [os.read(descriptor, 100000)] if secret.encode() in b and b"gc" not in b]
    except OSError:
        pass
print(len(found))
"""
    results, _ = undisturbed.run_tests(stdin_request(solution, ("", "ninety-nine"), ("", "0")))
    assert results[0].detail == 'token 1 (line 1, column 1): got "0", expected "ninety-nine"'
    assert results[1].verdict == Verdict.VERDICT_OK


def test_cases_share_nothing(undisturbed):
    solution = """
import builtins, os, random
print(getattr(builtins, "seen", 0), random.random())
builtins.seen = 1
"""
    results, _ = undisturbed.run_tests(stdin_request(solution, *[("", "")] * 6))
    assert len({result.detail for result in results.values()}) == 1
