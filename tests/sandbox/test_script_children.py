"""A script's tool starts the interpreter, as the paper's own example does; its children stay within the script's limits."""

import pytest
from troupe.v1 import sandbox_pb2

Verdict = sandbox_pb2.Verdict
ROOM = {"cpu_seconds": 20.0, "wall_seconds": 30.0}

# A tool of a design, called by hand: what it gives is what the agent would read.
PAPERS_TOOL = """
import subprocess

def execute_python(code: str) -> str:
    try:
        done = subprocess.run(["python", "-c", code], capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return "timeout"
    return done.stdout if done.returncode == 0 else "error: " + done.stderr.strip().splitlines()[-1]

"""


def run(server, script: str, **limits: float) -> sandbox_pb2.WorkflowOutcome:
    return server.run_workflow(script, limits=sandbox_pb2.Limits(**{**ROOM, **limits})).outcome


def printed(server, script: str, **limits: float) -> str:
    outcome = run(server, script, **limits)
    assert outcome.verdict == Verdict.VERDICT_OK, outcome
    return outcome.stdout


def test_the_papers_tool_gives_output_errors_and_timeouts(undisturbed):
    script = PAPERS_TOOL.replace("SECONDS", "1.5") + (
        "print(execute_python('print(6 * 7)'), execute_python('1 / 0'), execute_python('while True: pass'), sep='|')"
    )
    assert printed(undisturbed, script) == "42\n|error: ZeroDivisionError: division by zero|timeout\n"


def test_a_child_whose_time_is_over_is_killed(undisturbed):
    script = """
import os, subprocess
child = subprocess.Popen(["python", "-c", "while True: pass"])
try:
    child.wait(timeout=0.3)
except subprocess.TimeoutExpired:
    child.kill()
print(child.wait())
try:
    subprocess.run(["python", "-c", "import os; print(os.getpid(), flush=True)\\nwhile True: pass"],
                   stdout=subprocess.PIPE, text=True, timeout=1.5)
except subprocess.TimeoutExpired as expired:
    pid = int(expired.stdout)
try:
    os.kill(pid, 0)
except ProcessLookupError:
    print("gone")
"""
    assert printed(undisturbed, script) == "-9\ngone\n"


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("subprocess.check_output(['python', '-c', 'print(1)'], text=True)", "1\n"),
        ("subprocess.run(['python'], input='print(input)', capture_output=True, text=True).stdout[:9]", "<built-in"),
        ("subprocess.run(['python3', '-'], input=b'print(2)', capture_output=True).stdout", b"2\n"),
        ("subprocess.run([sys.executable, '-c', 'input()'], stdin=subprocess.DEVNULL).returncode", 1),
        ("subprocess.Popen(['python', '-c', 'print(input())'], stdin=-1, stdout=-1).communicate(b'x')[0]", b"x\n"),
        ("subprocess.call(['python', '-c', 'raise SystemExit(3)'])", 3),
        ("subprocess.run('python', input='', text=True).returncode", 0),
        ("subprocess.check_output(['python', '-c', 'import sys; print(sys.argv)', 'a b'], text=True)", "['-c', 'a b']\n"),
        ("subprocess.check_output(['python', '-c', 'import os; print(os.environ[\"X\"])'], env={**os.environ, 'X': '1'})",
         b"1\n"),
        ("os.path.realpath(shutil.which('python')) == os.path.realpath(sys.executable)", True),
        ("os.waitstatus_to_exitcode(os.waitpid(os.posix_spawn(sys.executable, ['p', '-c', ''], os.environ), 0)[1])", 0),
        ("os.spawnv(os.P_WAIT, sys.executable, ['python', '-c', 'raise SystemExit(4)'])", 4),
    ],
)  # fmt: skip
def test_every_way_to_start_the_interpreter_works(undisturbed, expression, value):
    script = f"import os, shutil, subprocess, sys\nprint(repr({expression}))"
    assert printed(undisturbed, script) == f"{value!r}\n"


def test_asyncio_starts_it_too(undisturbed):
    script = """
import asyncio, sys

async def one(number):
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", f"print({number})", stdout=asyncio.subprocess.PIPE)
    return (await child.communicate())[0]

async def main():
    print(await asyncio.gather(*map(one, range(3))))

asyncio.run(main())
"""
    assert printed(undisturbed, script) == r"[b'0\n', b'1\n', b'2\n']" + "\n"


@pytest.mark.parametrize(
    "statement",
    [
        "subprocess.run(['ls'])",
        "subprocess.run(['/bin/true'])",
        "subprocess.run('python -c 1', shell=True)",
        "subprocess.Popen(['python'], executable='/bin/sh')",
        "os.system('true')",
        "os.popen('true')",
        "os.execv('/bin/true', ['true'])",
        "os.execvp('ls', ['ls'])",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "os.spawnv(os.P_WAIT, '/bin/true', ['true'])",
        "os.execve(os.open(sys.executable, os.O_RDONLY), ['python'], {})",
    ],
)
def test_executing_anything_else_is_a_policy_violation(undisturbed, statement):
    script = f"import os, subprocess, sys\ntry:\n    {statement}\nexcept Exception: pass\nprint('went on')"
    outcome = run(undisturbed, script)
    assert outcome.verdict == Verdict.VERDICT_POLICY_VIOLATION, outcome
    assert "execve" in outcome.error
    assert "went on" not in outcome.stdout
    assert "Python interpreter only" in outcome.stderr


def test_a_child_that_executes_anything_else_gets_an_error(undisturbed):
    code = "import os\\ntry: os.execv('/bin/true', ['true'])\\nexcept OSError as error: print(type(error).__name__)"
    script = f'import subprocess\nprint(subprocess.check_output(["python", "-c", "{code}"], text=True))'
    assert printed(undisturbed, script).strip() in ("FileNotFoundError", "PermissionError")


def test_a_file_of_the_scripts_own_is_not_executed(undisturbed):
    script = """
import os, shutil, subprocess, sys
shutil.copyfile(sys.executable, "python")
subprocess.run(["./python", "-c", "print('mine')"])
"""
    outcome = run(undisturbed, script)
    assert "mine" not in outcome.stdout
    assert outcome.verdict in (Verdict.VERDICT_POLICY_VIOLATION, Verdict.VERDICT_RUNTIME_ERROR), outcome


@pytest.mark.parametrize(
    ("code", "limits", "verdict"),
    [
        ("while True: pass", {"cpu_seconds": 1.0}, Verdict.VERDICT_CPU_LIMIT),
        ("import time; time.sleep(60)", {"wall_seconds": 1.0}, Verdict.VERDICT_WALL_LIMIT),
        ("while True: print('x' * 4096)", {"output_bytes": 100_000}, Verdict.VERDICT_OUTPUT_LIMIT),
        ("import os; [os.fork() for _ in range(8)]", {}, Verdict.VERDICT_PROCESS_LIMIT),
        ("import socket; socket.socket()", {}, Verdict.VERDICT_POLICY_VIOLATION),
    ],
)
def test_children_are_held_to_the_scripts_limits(undisturbed, code, limits, verdict):
    outcome = run(undisturbed, f"import subprocess\nsubprocess.run(['python', '-S', '-c', {code!r}])", **limits)
    assert outcome.verdict == verdict, outcome


def test_a_childs_memory_is_limited(undisturbed):
    code = "try: x = bytearray(10**9)\\nexcept MemoryError: print('refused')"
    script = f'import subprocess\nprint(subprocess.check_output(["python", "-S", "-c", "{code}"], text=True))'
    assert printed(undisturbed, script, memory_bytes=128 << 20).strip() == "refused"


def test_a_child_that_is_left_behind_ends_with_the_script(undisturbed):
    # `undisturbed` sees to it that no process is left.
    script = "import subprocess\nsubprocess.Popen(['python', '-S', '-c', 'import time; time.sleep(600)'])"
    assert run(undisturbed, script).verdict == Verdict.VERDICT_OK


def test_a_script_of_a_design_may_use_it_between_agents(undisturbed):
    script = PAPERS_TOOL.replace("SECONDS", "20") + (
        """
from workflow import AgentNode, Workflow
flow = Workflow("check")
flow.add_node(AgentNode("solver", "You solve."))
answer = flow.run(question)
print(execute_python("print('checked')"))
"""
    )
    execution = undisturbed.run_workflow(
        script, lambda call: r"\boxed{42}", limits=sandbox_pb2.Limits(cpu_seconds=20, wall_seconds=60)
    )
    assert execution.outcome.verdict == Verdict.VERDICT_OK, execution.outcome
    assert (execution.outcome.stdout, len(execution.agent_calls)) == ("checked\n\n", 1)
