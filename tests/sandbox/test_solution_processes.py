"""A solution is compiled once, and each case has a process of its own, or in batch mode the same verdicts."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from troupe_sandbox import Limits, Sandbox, TestReport

SHORT = Limits(cpu_seconds=0.5, wall_seconds=20, memory_bytes=256 << 20, output_bytes=100_000)
ECHO = "print(input())"


@pytest.fixture(scope="module", params=["full", "pod"])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    return Sandbox(profile=request.param, test_slots=2)


def verdicts(sandbox: Sandbox, solution: str, count: int = 4, limits: Limits = SHORT) -> list[str]:
    """Of as many equal cases, whose right output is `right`."""
    return [case.verdict for case in sandbox.run_tests(solution, [("", "right")] * count, limits=limits).cases]


LEAVES_A_TRACE = {
    "a global": "import builtins\nprint(getattr(builtins, 'seen', 'right'))\nbuiltins.seen = 'wrong'",
    "a module": "import math\nprint(getattr(math, 'seen', 'right'))\nmath.seen = 'wrong'",
    "random numbers": "import random\nx = random.random()\nrandom.seed(1)\nprint('right' if x > 0.84 else x)",
    "a file": "import os\ntry:\n    open('trace', 'x')\nexcept OSError:\n    pass\nprint('right')",
    "its own number": "import os\nprint('right' if os.getpid() else 'wrong')",
    "a signal handler": "import signal\nprint('right' if signal.getsignal(10) == signal.SIG_DFL else 'wrong')\n"
    "signal.signal(10, print)",
}


@pytest.mark.parametrize("what", LEAVES_A_TRACE)
def test_a_case_finds_nothing_of_another(sandbox, what):
    assert verdicts(sandbox, LEAVES_A_TRACE[what], 20) == ["ok"] * 20


def test_a_case_has_its_own_input_only(sandbox):
    solution = """
import os
found = os.read(0, 100)
for descriptor in range(64):
    for start in (-1000, 0):
        try:
            os.lseek(descriptor, max(start, 0), 0)
            found += os.read(descriptor, 100)
        except OSError:
            pass
print(len(set(found.decode().split())))
"""
    cases = [(f"secret{number}", "1") for number in range(20)]
    assert sandbox.run_tests(solution, cases).passed


def test_cases_cannot_signal_one_another_or_the_solution(sandbox):
    solution = """
import os, signal, time
refused = 0
for number in [-1, 0, 1, *range(2, 400)]:
    if number == os.getpid():
        continue
    try:
        os.kill(number, signal.SIGKILL)
    except PermissionError:
        refused += 1
print("right" if refused >= 400 else refused)
"""
    assert verdicts(sandbox, solution, 12, Limits(cpu_seconds=5)) == ["ok"] * 12


def test_a_case_may_signal_itself(sandbox):
    solution = "import os, signal\nsignal.signal(10, lambda *_: print('right'))\nos.kill(os.getpid(), 10)"
    assert verdicts(sandbox, solution, 2) == ["ok"] * 2
    report = sandbox.run_tests("import os; os.abort()", [("", "")] * 2)
    assert [case.verdict for case in report.cases] == ["runtime_error"] * 2
    assert "signal 6" in report.cases[0].detail


def test_a_case_cannot_fork_a_case(sandbox):
    # CLONE_PARENT | CLONE_PIDFD | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID, as the process of the solution does.
    solution = "import ctypes\nctypes.CDLL(None).syscall(56, 0x8000 | 0x1000 | 0x1000000 | 0x200000, 0, 0, 0, 0)"
    assert set(verdicts(sandbox, solution)) == {"policy_violation"}


def test_signals_cannot_be_sent_through_files(sandbox):
    solution = "import fcntl\ntry:\n    fcntl.fcntl(1, fcntl.F_SETOWN, 1)\nexcept PermissionError:\n    print('right')"
    assert verdicts(sandbox, solution, 2) == ["ok"] * 2


COMPILE_BOMBS = {
    "deep parentheses": ("(" * 100_000, {"runtime_error", "memory_limit"}),
    "deep unary operators": ("x = " + "-" * 200_000 + "1", {"runtime_error", "memory_limit"}),
    "a huge tuple of constants": ("x = (" + "1," * 400_000 + ")", {"ok", "wrong_answer", "cpu_limit", "memory_limit"}),
    "constants multiplied": ("x = 'a' * 2**12 * 2**40", {"memory_limit", "runtime_error"}),
    "nested lambdas": ("x = " + "lambda: " * 5000 + "1", {"runtime_error", "memory_limit", "wrong_answer"}),
    "an unknown encoding": ("# -*- coding: xyzzy -*-\nprint('right')", {"ok", "runtime_error"}),
    "a null byte": ("print('\x00')", {"runtime_error"}),
    "a long line": ("x = '" + "a" * 900_000 + "'\nprint('right')", {"ok"}),
    "not finished": ("def f(:", {"runtime_error"}),
}


@pytest.mark.parametrize("name", COMPILE_BOMBS)
def test_a_solution_that_cannot_be_compiled_has_one_verdict_for_every_case(sandbox, name):
    source, expected = COMPILE_BOMBS[name]
    found = set(verdicts(sandbox, source, 3))
    assert len(found) == 1
    assert found <= expected
    assert verdicts(sandbox, "print('right')", 1) == ["ok"]


def test_compiling_is_charged_and_bounded(sandbox):
    source = "x = 1\n" * 150_000
    report = sandbox.run_tests(source, [("", "")] * 3, limits=Limits(cpu_seconds=0.05, wall_seconds=20))
    assert {case.verdict for case in report.cases} == {"cpu_limit"}
    assert all(case.use.cpu_seconds > 0.04 for case in report.cases)


SOLUTIONS = {
    "right": ("print(int(input()) * 2)", None),
    "right, with modules": ("import math, collections, heapq\nprint(math.floor(int(input()) * 2.0))", None),
    "right, reads bytes": ("import sys\nprint(int(sys.stdin.buffer.read()) * 2)", None),
    "right, from the descriptor": ("import os\nprint(int(os.read(0, 99)) * 2)", None),
    "right, writes to the descriptor": ("import os\nos.write(1, b'%d' % (int(input()) * 2))", None),
    "right, imports what is not loaded": ("import colorsys\nprint(int(input()) * 2)", None),
    "right, deep": ("import sys\nsys.setrecursionlimit(10**5)\nprint(int(input()) * 2)", None),
    "right, leaves": ("import sys\nprint(int(input()) * 2)\nsys.exit()", None),
    "right, leaves hard": ("import os\nprint(int(input()) * 2, flush=True)\nos._exit(0)", None),
    "right, in a thread": ("import threading\nthreading.Thread(target=lambda: print(int(input()) * 2)).start()", None),
    "right, at exit": ("import atexit\natexit.register(lambda: print(int(input()) * 2))", None),
    "wrong for one": ("x = int(input())\nprint(x * 2 if x != 3 else 7)", {3: "wrong_answer"}),
    "raises for one": ("x = int(input())\nprint(x * 2 // (x != 2))", {2: "runtime_error"}),
    "hangs for one": ("x = int(input())\nwhile x == 1: pass\nprint(x * 2)", {1: "cpu_limit"}),
    "eats memory for one": ("x = int(input())\ny = [0] * (x // 3 * 10**9)\nprint(x * 2)", {3: "memory_limit"}),
    "floods for one": ("x = int(input())\nprint('a' * (x // 3 * 10**6) or x * 2)", {3: "output_limit"}),
    "forks for one": ("import os\nx = int(input())\nif x == 0: os.fork()\nprint(x * 2)", {0: "process_limit"}),
    "breaks builtins": (
        "import builtins\nx = int(input())\nprint(x * 2)\nif x == 1: builtins.int = lambda x: 0",
        None,
    ),
    "breaks a module": (
        "import sys\nx = int(input())\nprint(x * 2)\nsys.modules['math'] = sys",
        None,
    ),
    "does not compile": ("print(", dict.fromkeys(range(4), "runtime_error")),
}


@pytest.mark.parametrize("name", SOLUTIONS)
def test_batch_mode_gives_the_verdicts_of_strict_mode(sandbox, name):
    solution, bad = SOLUTIONS[name]
    cases = [(f"{number}\n", str(number * 2)) for number in range(4)]
    expected = [(bad or {}).get(number, "ok") for number in range(4)]
    strict = sandbox.run_tests(solution, cases, limits=SHORT)
    batch = sandbox.run_tests(solution, cases, limits=SHORT, batch=True)
    assert [case.verdict for case in strict.cases] == expected, strict
    assert [case.verdict for case in batch.cases] == expected, batch
    # Figures apart, failures are explained alike: they come from strict mode.
    assert [case.detail for case in batch.cases] == [case.detail for case in strict.cases]


def test_a_batch_is_one_process_and_strict_mode_is_not(sandbox):
    solution = "import math\nprint(getattr(math, 'seen', 'first'))\nmath.seen = 'again'"
    cases = [("", "first"), ("", "again"), ("", "again")]
    assert [case.verdict for case in sandbox.run_tests(solution, cases, batch=True).cases] == ["ok"] * 3
    assert not sandbox.run_tests(solution, cases).passed


@pytest.mark.parametrize(("end", "verdict"), [("while True: pass", "cpu_limit"), ("os._exit(3)", "runtime_error")])
def test_answers_of_a_batch_that_did_not_end_plainly_are_not_taken(sandbox, end, verdict):
    # The right answers, written where a batch puts them, by a program that does not stand up to a case of its own.
    answers = "import os\ntry: os.write(4, 3 * (b'\\x01\\0\\0\\0' + b'1'))\nexcept OSError: pass\n"
    solution = answers + end
    report = sandbox.run_tests(solution, [("", "1")] * 3, limits=SHORT, batch=True)
    assert [case.verdict for case in report.cases] == [verdict] * 3


def test_assertions_are_not_run_in_a_batch(sandbox):
    with pytest.raises(ValueError, match="batch"):
        sandbox.run_tests("x = 1", ["assert x"], batch=True)


def test_many_cases_come_back_once_each(sandbox):
    cases = [(str(number), str(number)) for number in range(200)]
    report = sandbox.run_tests(ECHO, cases)
    assert report.passed
    assert [case.index for case in report.cases] == list(range(200))


def children() -> set[int]:
    """Of all threads of this process."""
    lists = (path.read_text() for path in Path("/proc/self/task").glob("*/children"))
    return {int(child) for text in lists for child in text.split()}


def status_line(pid: int, name: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.removeprefix(f"{name}:") for line in lines if line.startswith(f"{name}:"))


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def run_and_kill(tmp_path: Path, times: int) -> tuple[list[str], str]:
    """Runs a job of two long cases and kills the process of the solution; its verdicts, or the error."""
    own = Sandbox(profile="pod", test_slots=1, work_root=tmp_path)
    zygotes = children()
    found: list[str] = []
    raised: list[str] = []

    def run() -> None:
        try:
            report = own.run_tests("import time\ntime.sleep(1)\nprint('right')", [("", "right")] * 2)
            found.extend(case.verdict for case in report.cases)
        except RuntimeError as error:
            raised.append(str(error))

    job = threading.Thread(target=run)
    job.start()
    killed: set[int] = set()
    for _ in range(times):
        # The process of the solution comes before that of its case.
        assert eventually(lambda: len(children() - zygotes - killed) >= 2)
        solution = min(children() - zygotes - killed)
        os.kill(solution, signal.SIGKILL)
        killed.add(solution)
    job.join(timeout=30)
    assert eventually(lambda: children() == zygotes)
    return found, "".join(raised)


def test_a_killed_solution_is_started_again(tmp_path):
    assert run_and_kill(tmp_path, 1) == (["ok", "ok"], "")


def test_a_solution_that_is_killed_again_is_a_fault_that_says_so(tmp_path):
    found, error = run_and_kill(tmp_path, 2)
    # The last case may be over before the process is missed.
    assert found == ["ok", "ok"] or ("of a solution is gone" in error and "second time" in error)


def test_a_solution_whose_namespace_is_ended_between_two_cases_is_started_again(tmp_path):
    """The kernel refuses the next fork as if memory were lacking, which must not be taken for that."""
    own = Sandbox(profile="full", test_slots=1, work_root=tmp_path)
    zygotes = children()
    reports: list[TestReport] = []
    source = "import time\ntime.sleep(1)\nprint('right')"
    job = threading.Thread(target=lambda: reports.append(own.run_tests(source, [("", "right")] * 2)))
    job.start()
    assert eventually(lambda: len(children() - zygotes) == 3)
    # The solution, the first process of the namespace of its cases, the case: by their numbers in the innermost namespace.
    first, case, solution = sorted(children() - zygotes, key=lambda pid: int(status_line(pid, "NSpid").split()[-1]))
    os.kill(solution, signal.SIGSTOP)
    assert eventually(lambda: case not in children())
    os.kill(first, signal.SIGKILL)
    os.kill(solution, signal.SIGCONT)
    job.join(timeout=30)
    assert [case.verdict for case in reports[0].cases] == ["ok", "ok"]
    assert eventually(lambda: children() == zygotes)


def test_nothing_is_left_of_a_job(sandbox):
    before = children()
    descriptors = open_descriptors()
    for solution in (ECHO, "while True: pass", "print(", "import os; os._exit(3)"):
        sandbox.run_tests(solution, [("right", "right")] * 10, limits=Limits(cpu_seconds=0.05))
    # What an earlier test left behind may go meanwhile.
    assert eventually(lambda: children() <= before)
    assert eventually(lambda: open_descriptors() <= descriptors)


def test_preloaded_modules_are_there_and_unknown_ones_stop_the_start():
    numpy = pytest.importorskip("numpy", reason="numpy is not installed here")
    if "SANDBOX_PYTHON" in os.environ:
        pytest.skip("numpy of this environment is not for the interpreter of the sandboxed programs")
    sandbox = Sandbox(test_slots=1, preload=["numpy"])
    solution = "import sys\nprint('numpy' in sys.modules)\nimport numpy as np\nprint(np.eye(3) @ [1, 2, 3])"
    report = sandbox.run_tests(solution, [("", "True [1. 2. 3.]")] * 2)
    assert report.passed, report
    assert numpy.__version__ in sandbox.run_tool("import numpy; numpy.__version__").output
    with pytest.raises(ValueError, match=r"'numpyy' cannot be preloaded .*install it"):
        Sandbox(preload=["numpy", "numpyy"])
