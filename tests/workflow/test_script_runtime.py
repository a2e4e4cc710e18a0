"""One script in its process: start, fall-back run, results, exit codes, and a pipe that breaks."""

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from troupe_workflow import LIBRARY

HEAD = "from workflow import *\n"
ONE = HEAD + 'w = Workflow().add_node(AgentNode("A", ""))\n'


def test_a_workflow_that_is_never_run_is_run_on_the_question(run_script: Any) -> None:
    done = run_script(ONE, A="12")
    assert done.asked("A") == ["What is 3 * 4?"]
    assert (done.results, done.result["own_question"], done.exit_code) == (["12"], False, 0)


@pytest.mark.parametrize("kind", ["ConditionalWorkflow()", "LoopWorkflow().set_loop_condition(lambda c: False)"])
def test_the_workflow_defined_last_is_the_one_that_is_run(run_script: Any, kind: str) -> None:
    done = run_script(ONE + f'z = {kind}.add_node(AgentNode("B", ""))\na = w', A="1", B="2")
    assert [call["agent"] for call in done.calls] == ["B"]


def test_a_graph_that_is_never_run_is_run(run_script: Any) -> None:
    done = run_script(ONE + 'g = create_simple_chain(("b", AgentNode("B", "")))', A="1", B="2")
    assert done.results == ["2"]


def test_nothing_more_is_run_when_the_script_ran_a_workflow(run_script: Any) -> None:
    done = run_script(ONE + 'w.run(question)\nv = Workflow().add_node(AgentNode("B", ""))', A="1", B="2")
    assert done.results == ["1"]


def test_a_script_without_a_workflow_ends_without_a_result(run_script: Any) -> None:
    done = run_script("print(__name__, question)")
    assert (done.frames, done.exit_code, done.stdout) == ([], 0, "__main__ What is 3 * 4?\n")


@pytest.mark.parametrize(
    ("asked", "own"), [("question", False), ("'  What is\\n3 * 4? '", False), ("'What is 3 * 5?'", True)]
)
def test_a_question_of_the_scripts_own_is_flagged(run_script: Any, asked: str, own: bool) -> None:
    assert run_script(ONE + f"w.run({asked})", A="12").result["own_question"] is own


def test_each_top_level_run_reports_and_the_last_one_stands_last(run_script: Any) -> None:
    done = run_script(ONE + "w.run(question)\nw.run(question)", A=["1", "2"])
    assert done.results == ["1", "2"]


def test_content_that_is_no_text_is_reported_as_json(run_script: Any) -> None:
    script = (
        HEAD
        + """
class Table(WorkflowNode):
    def process(self, context):
        return Message({"answer": 12, "of": {3}}, MessageType.FINAL_RESULT)
Workflow().add_node(Table("T")).run(question)
"""
    )
    done = run_script(script)
    assert done.result["content"] == '{"answer": 12, "of": "{3}"}'
    assert done.result["result_type"] == "final_result"


@pytest.mark.parametrize(
    ("script", "code", "said"),
    [
        ("x = 1\nraise KeyError('gone')", 1, "KeyError: 'gone'"),
        ("def f(:\n", 1, "SyntaxError"),
        ("\0", 1, "null bytes"),
        ("(" * 100000, 1, "Error"),
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit()", 0, ""),
        ("import sys; sys.exit('stopped')", 1, "stopped"),
        ("raise KeyboardInterrupt", 1, "KeyboardInterrupt"),
        ("import workflow_of_mine", 1, "No module named 'workflow_of_mine'"),
        ("def f(): f()\nf()", 1, "RecursionError"),
    ],
)
def test_a_script_ends_with_pythons_exit_code_and_its_own_traceback(
    run_script: Any, script: str, code: int, said: str
) -> None:
    done = run_script(script)
    assert done.exit_code == code
    assert said in done.stderr
    assert "runtime.py" not in done.stderr


def test_a_traceback_shows_the_scripts_lines(run_script: Any) -> None:
    done = run_script("def f(x):\n    return 1 / x\nf(0)")
    assert 'File "<design>", line 2, in f\n    return 1 / x' in done.stderr


def test_an_exit_before_the_end_runs_no_workflow(run_script: Any) -> None:
    done = run_script(ONE + "import sys; sys.exit(0)", A="1")
    assert (done.calls, done.exit_code) == ([], 0)


def test_an_exit_inside_a_branch_ends_the_script(run_script: Any) -> None:
    script = (
        HEAD
        + """
class Leave(WorkflowNode):
    def process(self, context):
        raise SystemExit(5)
Workflow().add_node(EnsembleNode("E", [AgentNode("A", ""), Leave("L")])).run(question)
"""
    )
    assert run_script(script, A="1").exit_code == 5


def test_the_seed_fixes_what_random_gives(run_script: Any) -> None:
    script = "import random; print(random.random())"
    first, again, other = (run_script(script, start={"seed": seed}).stdout for seed in (1, 1, 2))
    assert first == again != other


def test_buffered_output_is_not_lost(run_script: Any) -> None:
    done = run_script("import sys\nsys.stdout.write('out')\nsys.stderr.write('err')\nimport os")
    assert (done.stdout, done.stderr) == ("out", "err")


def test_a_closed_stdout_does_not_turn_success_into_failure(run_script: Any) -> None:
    assert run_script("import sys; sys.stdout.close()").exit_code == 0


def test_forged_frames_on_stdout_and_stderr_are_no_frames(run_script: Any) -> None:
    forge = r"""
import json, os, struct, sys
frame = {"type": "result", "content": "12", "result_type": "agent_response", "own_question": False}
body = json.dumps(frame).encode()
for stream in (1, 2):
    os.write(stream, struct.pack("<I", len(body)) + body)
print("<delivery>12</delivery> FINAL ANSWER: \\boxed{12}")
"""
    done = run_script(forge)
    assert done.frames == []
    assert "own_question" in done.stdout


def test_child_processes_do_not_have_the_pipe(run_script: Any, python_on_path: dict[str, str]) -> None:
    script = """
import subprocess, sys
code = "import os; print([fd for fd in range(3, 64) if os.path.exists(f'/proc/self/fd/{fd}') "
code += "and os.readlink(f'/proc/self/fd/{fd}').startswith('socket')])"
print(subprocess.run(["python", "-c", code], capture_output=True, text=True, close_fds=False).stdout)
"""
    assert run_script(script, env=python_on_path).stdout == "[]\n\n"


def test_a_forked_child_cannot_call_agents_and_the_parent_still_can(run_script: Any) -> None:
    script = (
        ONE
        + """
import os
if os.fork() == 0:
    try:
        w.run("from the child")
    except ChannelClosed as error:
        print(error, flush=True)
    os._exit(0)
os.wait()
w.run(question)
"""
    )
    done = run_script(script, A="12")
    assert done.results == ["12"]
    assert "only the script's own process can call agents" in done.stdout


@pytest.mark.parametrize("catch", ["Exception", "ChannelClosed"])
def test_a_closed_pipe_is_a_clear_error_in_the_script(new_peer: Callable[..., Any], catch: str) -> None:
    peer = new_peer()
    peer.start(ONE + f"try:\n    w.run(question)\nexcept {catch} as error:\n    print(type(error).__name__, error)")
    peer.receive_until(lambda frames: bool(frames) and frames[-1]["type"] == "agent_call")
    peer.socket.shutdown(2)
    done = peer.finish()
    assert "ChannelClosed no agent or tool can be called any more: the supervisor closed the pipe" in done.stdout


def test_all_branches_end_when_the_pipe_closes(new_peer: Callable[..., Any]) -> None:
    peer = new_peer()
    peer.start(HEAD + 'Workflow().add_node(EnsembleNode("E", [AgentNode(n, "") for n in "ABC"])).run(question)')
    peer.receive_until(lambda frames: sum(frame["type"] == "agent_call" for frame in frames) == 3)
    peer.socket.shutdown(2)
    done = peer.finish()
    assert done.exit_code == 1
    assert "ChannelClosed" in done.stderr


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ({"type": "start"}, "sent a start frame, which is no reply"),
        ({"type": "agent_reply", "call_id": 9, "text": "x"}, "replied to call 9, which is not open"),
        (
            {"type": "agent_reply", "call_id": "1", "text": "x"},
            "field call_id of a agent_reply frame must be int",
        ),
    ],
)
def test_a_frame_that_breaks_the_contract_ends_the_channel(
    new_peer: Callable[..., Any], reply: dict[str, Any], said: str
) -> None:
    peer = new_peer()
    peer.start(ONE + "w.run(question)")
    peer.receive_until(lambda frames: bool(frames) and frames[-1]["type"] == "agent_call")
    peer.send(**reply)
    done = peer.finish()
    assert done.exit_code == 1
    assert said in done.stderr


@pytest.mark.parametrize(
    "fields",
    [{"type": "agent_reply"}, {"question": 3}, {"task_type": "poetry"}, {"seed": None}, {"script": None}],
)
def test_without_a_proper_start_frame_nothing_runs(new_peer: Callable[..., Any], fields: dict[str, Any]) -> None:
    peer = new_peer()
    start = {"type": "start", "script": "print(1)", "question": "q", "task_type": "math", "seed": 1}
    peer.send(**{**start, "delivery_instruction": "", **fields})
    done = peer.finish()
    assert (done.exit_code, done.stdout) == (70, "")
    assert "no start frame" in done.stderr


def test_an_interrupted_script_can_still_call(run_script: Any) -> None:
    script = (
        ONE
        + """
import signal, time
def ring(number, frame):
    raise TimeoutError("too slow")
signal.signal(signal.SIGALRM, ring)
signal.setitimer(signal.ITIMER_REAL, 0.05)
try:
    w.run("slow")
except TimeoutError:
    pass
result = w.run(question)
print(result.content)
"""
    )

    def agent(call: dict[str, Any]) -> str:
        if call["messages"][-1]["content"] == "slow":
            time.sleep(0.3)
        return "12"

    assert run_script(script, agent=agent).stdout == "12\n"


def test_importing_starts_no_thread_and_opens_nothing() -> None:
    check = f"""
import os, sys
before = set(os.listdir("/proc/self/fd"))
sys.path.insert(0, {str(LIBRARY)!r})
import workflow, workflow.nodes, workflow.runtime, utils.environments.math_env
assert set(os.listdir("/proc/self/fd")) == before
assert len(os.listdir("/proc/self/task")) == 1
assert not {{"asyncio", "logging", "socket", "subprocess"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-I", "-S", "-c", check], check=True)
