"""How programs end: what they wrote and did not flush or close arrives as it does from a plain interpreter."""

import subprocess
from collections.abc import Iterator

import pytest
from troupe_sandbox import Sandbox
from troupe_sandbox.settings import base_interpreter

ENDINGS = [
    "o = open(1, 'w')\no.write(input())",
    "import os\no = os.fdopen(1, 'wb')\no.write(input().encode())",
    "import os\no = os.fdopen(os.dup(1), 'w')\no.write(input())",
    "import io, sys\no = io.TextIOWrapper(sys.stdout.buffer)\no.write(input())",
    "import io, sys\ndef f(): return o\no = io.TextIOWrapper(sys.stdout.buffer)\no.write(input())",
    "import io, sys\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer)\nprint(input())",
    "import io, sys\nclass C: pass\nc = C()\nc.me, c.o = c, io.TextIOWrapper(open(1, 'wb'))\nc.o.write(input())",
    "import io, sys\nprint(input())\nsys.stdout = io.StringIO()\nprint('lost')",
    "import sys\nprint(input())\nsys.stdout = open(1, 'w', closefd=False)\nprint('first')",
    "import sys\nprint(input())\nsys.stdout.close()",
    "import sys\nprint(input())\nsys.stdout = None",
    "import sys\nprint(input())\nsys.exit(2**70)",
    "import sys\nprint(input())\nsys.exit(256)",
    "import sys\nprint(input())\ndel sys.stdout",
    "import sys\nprint(input())\nsys.stderr.close()",
    "import sys\nprint(input())\nsys.stderr = None",
    "import sys\nprint(input())\nsys.stdout.detach().write(b'more')",
    "import atexit\n@atexit.register\ndef fail(): raise ValueError\nprint(input())",
    "import threading\no = open(1, 'w')\nthreading.Thread(target=lambda: o.write(input())).start()",
    "import threading, time\no = open(1, 'w')\no.write(input())\n"
    "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
    "import sys\nclass Broken:\n  def write(self, text): pass\n  def flush(self): 1 / 0\n"
    "print(input())\nsys.stdout = Broken()",
    "import io, os\nclass Own(io.IOBase):\n  def flush(self): os.write(1, b'right')\n"
    "o = Own()\no.me = o\nio.StringIO(input())",
    "import io\nclass Bad(io.TextIOWrapper):\n  def flush(self): raise SystemExit(3)\n"
    "o = Bad(open(1, 'wb', closefd=False))\no.write(input())\nx = open(1, 'w', closefd=False)\nx.write('right')",
]


@pytest.fixture(scope="module", params=["full", "pod"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with Sandbox(profile=request.param, test_slots=1) as running:
        yield running


def plainly(program: str) -> tuple[int, str]:
    """Exit status and output in an interpreter of its own."""
    command = [base_interpreter(), "-I", "-S", "-c", program]
    done = subprocess.run(command, input="right\n", capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_program_that_leaves_output_behind_ends_as_plain_python_does(sandbox, ending):
    status, output = plainly(ending)
    for batch in (False, True):
        report = sandbox.run_tests(ending, [("right\n", output)] * 2, checker="exact", batch=batch)
        for case in report.cases:
            assert case.verdict == ("ok" if status == 0 else "runtime_error"), (case, batch)
    # A job with one case runs it in the solution's own process.
    alone = sandbox.run_tests(ending, [("right\n", output)], checker="exact")
    assert alone.passed == (status == 0), alone


@pytest.mark.parametrize("ending", [ending for ending in ENDINGS if "StringIO" not in ending])
def test_tools_and_scripts_end_so_as_well(sandbox, ending):
    # Neither has an input; a script's last expression is no output.
    program = ending.replace("input()", "'right'") + "\npass"
    status, output = plainly(program)
    tool = sandbox.run_tool(program)
    assert tool.verdict == ("ok" if status == 0 else "runtime_error"), tool
    if status == 0:
        assert tool.output.startswith(output)
    script = sandbox.run_workflow(program, "?", lambda call: "42")
    assert script.stdout == output, script
    assert (script.verdict == "ok") == (status == 0), script


def test_a_tool_may_close_its_output_in_its_last_expression(sandbox):
    tool = sandbox.run_tool("import sys\nprint('x')\nsys.stdout.close()")
    assert (tool.verdict, tool.output.strip()) == ("ok", "x")


def test_what_flushes_at_the_end_takes_no_verdict_back(sandbox):
    failing = """
import io, os
class Late(io.TextIOWrapper):
    def flush(self): os._exit(0)
def f(): return 1
late = Late(open(1, 'wb'))
"""
    report = sandbox.run_tests(failing, ["assert f() == 2"] * 2)
    assert not report.passed
    assert {case.verdict for case in report.cases}.isdisjoint({"ok"})
    assert not sandbox.run_tests(failing, [("", "right")]).passed
