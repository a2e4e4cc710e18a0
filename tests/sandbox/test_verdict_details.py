"""What a verdict says beside its name."""

import pytest
from sandboxed import stdin_tests
from troupe.v1 import sandbox_pb2

Verdict = sandbox_pb2.Verdict
LIMITS = sandbox_pb2.Limits(cpu_seconds=5, wall_seconds=20, memory_bytes=128 << 20, output_bytes=100_000)


def only_case(server, solution, expected="", **fields):
    results, outcome = server.run_tests(stdin_tests(solution, ("", expected), **{"limits": LIMITS, **fields}))
    return results[0], outcome


def test_a_wrong_answer_names_the_first_failed_case_and_the_place_in_it(undisturbed):
    cases = [("1", "1"), ("2", "2\n3 4"), ("3", "9"), ("4", "4")]
    solution = "n = input()\nprint(n)\nif n == '2': print(3, 5)"
    results, outcome = undisturbed.run_tests(stdin_tests(solution, *cases, limits=LIMITS))
    assert outcome.HasField("first_failed_index")
    assert outcome.first_failed_index == 1
    found = results[1].difference
    assert (found.unit, found.place, found.line, found.column) == (sandbox_pb2.Difference.UNIT_TOKEN, 3, 2, 3)
    assert (found.got, found.expected) == ("5", "4")
    assert not results[0].HasField("difference")


def test_a_job_that_passes_has_no_first_failed_case(undisturbed):
    _, outcome = only_case(undisturbed, "print(1)", "1")
    assert outcome.passed
    assert not outcome.HasField("first_failed_index")


def test_a_runtime_error_carries_the_end_of_its_traceback_however_much_was_written(undisturbed):
    result, _ = only_case(
        undisturbed,
        "import sys\nsys.stderr.write('x' * 90_000 + '\\n')\ndef inner(): raise KeyError('the end')\ninner()",
    )
    assert result.verdict == Verdict.VERDICT_RUNTIME_ERROR
    assert result.detail.endswith("KeyError: 'the end'")
    assert "in inner" in result.detail


def test_an_assertion_of_the_program_itself_is_an_error_like_any_other(undisturbed):
    result, _ = only_case(undisturbed, "def check(n):\n    assert n > 1, 'too small'\ncheck(1)")
    assert result.verdict == Verdict.VERDICT_RUNTIME_ERROR
    assert "in check" in result.detail
    assert result.detail.endswith("AssertionError: too small")
    result, _ = only_case(undisturbed, "import os\nos._exit(112)")
    assert (result.verdict, result.detail) == (Verdict.VERDICT_RUNTIME_ERROR, "exit status 112")
    script = "from workflow.tools import run_python\nprint(run_python(\"assert 1 > 2, 'too small'\", None))"
    execution = undisturbed.run_workflow(script)
    assert "AssertionError: too small" in execution.outcome.stdout
    assert [run.verdict for run in execution.tool_runs] == [Verdict.VERDICT_RUNTIME_ERROR]


def test_control_characters_of_an_error_do_not_reach_a_terminal(undisturbed):
    result, _ = only_case(undisturbed, "raise ValueError('\\x1b[31m red \\0')")
    assert result.verdict == Verdict.VERDICT_RUNTIME_ERROR
    assert not any(ord(character) < 32 and character not in "\n\t" for character in result.detail)


def test_too_much_output_is_shown_cut_with_a_marker(undisturbed):
    result, _ = only_case(undisturbed, "while True: print('abc')")
    assert result.verdict == Verdict.VERDICT_OUTPUT_LIMIT
    assert "100000 bytes" in result.detail
    assert "abc\nabc\n" in result.detail
    assert "bytes cut …]" in result.detail


def test_too_much_output_of_a_script_is_cut_with_a_marker(undisturbed):
    limits = sandbox_pb2.Limits(output_bytes=200_000)
    outcome = undisturbed.run_workflow("while True: print('abc')", limits=limits).outcome
    assert outcome.verdict == Verdict.VERDICT_OUTPUT_LIMIT
    assert outcome.stdout.startswith("abc\n")
    assert "bytes cut …]" in outcome.stdout


def test_a_policy_violation_names_the_system_call(undisturbed):
    result, _ = only_case(undisturbed, "import ctypes; ctypes.CDLL(None).syscall(165, 0, 0, 0, 0, 0)")
    assert result.verdict == Verdict.VERDICT_POLICY_VIOLATION
    assert "mount" in result.detail


@pytest.mark.parametrize(
    ("solution", "verdict"),
    [
        ("x = [0] * 10**9", Verdict.VERDICT_MEMORY_LIMIT),
        ("x = []\nwhile True: x.append(bytearray(1 << 20))", Verdict.VERDICT_MEMORY_LIMIT),
        ("try: bytearray(1 << 40)\nexcept MemoryError: raise", Verdict.VERDICT_MEMORY_LIMIT),
        # Native code that is refused memory aborts, with all of it in use.
        (
            "import ctypes\nx = []\ntry:\n    while True: x.append(bytearray(1 << 20))\nexcept MemoryError:\n"
            "    ctypes.CDLL(None).abort()",
            Verdict.VERDICT_MEMORY_LIMIT,
        ),
        ("raise MemoryError", Verdict.VERDICT_RUNTIME_ERROR),
        ("def f(): raise MemoryError('no, really')\nf()", Verdict.VERDICT_RUNTIME_ERROR),
        ("import ctypes; ctypes.CDLL(None).abort()", Verdict.VERDICT_RUNTIME_ERROR),
    ],
)
def test_a_memory_limit_is_one_that_was_reached(undisturbed, solution, verdict):
    result, _ = only_case(undisturbed, solution)
    assert result.verdict == verdict, result


@pytest.mark.parametrize("script", ["raise MemoryError", "x = [0] * 10**10"])
def test_a_script_that_raises_a_memory_error_itself_has_not_reached_its_limit(undisturbed, script):
    verdict = undisturbed.run_workflow(script).outcome.verdict
    assert verdict == (Verdict.VERDICT_RUNTIME_ERROR if "raise" in script else Verdict.VERDICT_MEMORY_LIMIT)


@pytest.mark.parametrize(
    "solution",
    [
        "import os; os.kill(os.getpid(), 9)",
        "import signal; signal.raise_signal(9)",
        "import ctypes; libc = ctypes.CDLL(None); libc.syscall(200, libc.gettid(), 9)",
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 1))\nwhile True: pass",
        "import fcntl, os\nr, w = os.pipe()\nfcntl.fcntl(r, 8, os.getpid())\nfcntl.fcntl(r, 10, 9)\n"
        "fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC)\nos.write(w, b'x')\nos.read(r, 1)\nraise SystemExit(3)",
    ],
)
def test_a_program_that_kills_itself_cannot_pass_for_one_that_was_killed(undisturbed, solution):
    result, _ = only_case(undisturbed, solution, limits=sandbox_pb2.Limits(cpu_seconds=3, wall_seconds=30))
    # The first process of a namespace does not even notice.
    unharmed = Verdict.VERDICT_OK if undisturbed.profile == "full" else Verdict.VERDICT_RUNTIME_ERROR
    ends = (Verdict.VERDICT_RUNTIME_ERROR, Verdict.VERDICT_CPU_LIMIT, Verdict.VERDICT_POLICY_VIOLATION, unharmed)
    assert result.verdict in ends, result


def test_a_child_cannot_have_its_end_kill_the_script(undisturbed):
    script = "import ctypes, os, time\nctypes.CDLL(None).syscall(56, 9, 0, 0, 0, 0) or os._exit(0)\ntime.sleep(30)"
    outcome = undisturbed.run_workflow(script).outcome
    assert outcome.verdict == Verdict.VERDICT_POLICY_VIOLATION
    assert "clone" in outcome.error
