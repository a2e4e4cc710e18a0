"""Scripts that do not behave. Each case asserts the verdict; the fixture asserts that nothing survives."""

import os
import signal
import socket
import struct
import time
from queue import SimpleQueue

import grpc
import pytest
from troupe.v1 import sandbox_pb2

Verdict = sandbox_pb2.Verdict
SHORT = sandbox_pb2.Limits(cpu_seconds=1, wall_seconds=10, memory_bytes=64 << 20, output_bytes=1 << 20)


@pytest.mark.parametrize(
    ("script", "verdict", "said"),
    [
        ("while True: pass", Verdict.VERDICT_CPU_LIMIT, "CPU time"),
        (
            "import time\nwhile True:\n    for _ in range(9999): pass\n    time.sleep(0)",
            Verdict.VERDICT_CPU_LIMIT,
            "CPU time",
        ),
        (
            "import threading\ndef spin():\n    while True: pass\nfor _ in range(8): threading.Thread(target=spin).start()",
            Verdict.VERDICT_CPU_LIMIT,
            "CPU time",
        ),
        (
            "import subprocess, sys\nsubprocess.run([sys.executable, '-S', '-c', 'while True: pass'])",
            Verdict.VERDICT_CPU_LIMIT,
            "CPU time",
        ),
        ("import os, time\nif os.fork() == 0:\n    while True: pass\ntime.sleep(60)", Verdict.VERDICT_CPU_LIMIT, ""),
        (
            "import signal\nfor n in (1, 2, 15, 24): signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
            Verdict.VERDICT_CPU_LIMIT,
            "",
        ),
        ("import os\nwhile True: os.fork()", Verdict.VERDICT_PROCESS_LIMIT, "processes"),
        ("import os\nfor _ in range(9):\n    if os.fork() == 0: os.fork()", Verdict.VERDICT_PROCESS_LIMIT, "processes"),
        ("print('x' * (2 << 20))", Verdict.VERDICT_OUTPUT_LIMIT, "bytes of output"),
        ("import sys\nwhile True: sys.stderr.write('x' * 65536)", Verdict.VERDICT_OUTPUT_LIMIT, "bytes of output"),
        ("import socket\nsocket.create_connection(('127.0.0.1', 80))", Verdict.VERDICT_POLICY_VIOLATION, "socket"),
        (
            "import socket\nsocket.socket(socket.AF_INET6, socket.SOCK_DGRAM)",
            Verdict.VERDICT_POLICY_VIOLATION,
            "socket",
        ),
        (
            "import socket\nsocket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
            Verdict.VERDICT_POLICY_VIOLATION,
            "socketpair",
        ),
        ("import ctypes\nctypes.CDLL(None).ptrace(0, 0, 0, 0)", Verdict.VERDICT_POLICY_VIOLATION, "ptrace"),
        ("import ctypes\nctypes.CDLL(None).unshare(0x10000000)", Verdict.VERDICT_POLICY_VIOLATION, "unshare"),
        ("import os\nos.memfd_create('hidden')", Verdict.VERDICT_POLICY_VIOLATION, "memfd_create"),
        (
            "import ctypes\nctypes.CDLL(None).syscall(56, 0x10000011, 0, 0, 0, 0)",
            Verdict.VERDICT_POLICY_VIOLATION,
            "clone",
        ),
        ("x = bytearray(10**10)", Verdict.VERDICT_MEMORY_LIMIT, "memory"),
        ("x = []\nwhile True: x.append(bytes(1 << 20))", Verdict.VERDICT_MEMORY_LIMIT, "memory"),
        ("import os\nos.kill(os.getpid(), 11)", Verdict.VERDICT_RUNTIME_ERROR, "signal 11"),
        ("import os\nos._exit(3)", Verdict.VERDICT_RUNTIME_ERROR, "exit status 3"),
    ],
)
def test_each_abuse_has_its_verdict(undisturbed, script, verdict, said):
    outcome = undisturbed.run_workflow(script, limits=SHORT).outcome
    assert outcome.verdict == verdict, outcome
    if verdict == Verdict.VERDICT_CPU_LIMIT:
        assert outcome.use.cpu_seconds > 0.9 * SHORT.cpu_seconds
    assert said in outcome.error


@pytest.mark.parametrize(
    "script",
    [
        "print(open('/etc/passwd').read())",
        "print(open('/etc/hostname').read())",
        "import os\nprint(open(f'/proc/{os.getppid()}/environ').read())",
        "import os\nprint(open('/proc/1/environ').read())",
        "import os\nprint(open('/proc/self/environ').read())",
        "import os\nprint(os.listdir('/home'), os.listdir('/root'))",
        "import subprocess\nprint(subprocess.run(['/bin/sh', '-c', 'id'], capture_output=True).stdout)",
        "import subprocess\nprint(subprocess.run(['/usr/bin/env'], capture_output=True).stdout)",
        "open('/tmp/../usr/lib/planted', 'w')",
        "open('/dev/shm/planted', 'w')",
        "import os\nos.chmod('/usr/lib', 0o777)",
        "import os\nos.setuid(0)",
        "import socket\nsocket.socket(socket.AF_UNIX).connect('/run/docker.sock')",
        "import os\nos.kill(os.getppid(), 9) if os.getppid() > 1 else os.kill(-1, 9)",
        "import os\nos.setsid()",
        "f = open('big', 'wb')\nwhile True: f.write(bytes(1 << 20))",
        "import os\nf = open('sparse', 'wb')\nos.truncate('sparse', 10 << 30)",
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    ],
)
def test_what_is_out_of_reach_is_an_error(undisturbed, script):
    outcome = undisturbed.run_workflow(script, limits=SHORT).outcome
    assert outcome.verdict in (
        Verdict.VERDICT_RUNTIME_ERROR,
        Verdict.VERDICT_POLICY_VIOLATION,
        Verdict.VERDICT_OUTPUT_LIMIT,
    ), outcome
    assert outcome.stdout == ""


def test_the_environment_holds_nothing_of_the_service(undisturbed):
    outcome = undisturbed.run_workflow("import os; print(sorted(os.environ))").outcome
    assert outcome.stdout == "['PATH']\n"


def test_events_of_nodes_without_end_are_a_violation(undisturbed):
    script = """
import json, os, struct
event = {"type": "node_event", "kind": "enter", "visit_id": 1, "parent_visit_id": 0, "node": "n", "node_type": "t"}
body = json.dumps(event | {"result_type": ""}).encode()
for _ in range(10_001): os.write(3, struct.pack("<I", len(body)) + body)
while True: pass
"""
    execution = undisturbed.run_workflow(script)
    assert execution.outcome.verdict == Verdict.VERDICT_POLICY_VIOLATION
    assert "10000 node events" in execution.outcome.error
    assert len(execution.node_events) == 10_000


def test_nothing_printed_or_written_to_any_descriptor_becomes_a_result(undisturbed):
    """A perfect frame, answer and reward, on standard output, standard error and every descriptor."""
    script = r"""
import json, os, struct, sys
result = {"type": "result", "content": "\\boxed{42}", "result_type": "final_result", "own_question": False}
body = json.dumps(result).encode()
forged = struct.pack("<I", len(body)) + body + b"<answer>42</answer> reward=1.0\n"
for target in (sys.stdout.buffer, sys.stderr.buffer):
    target.write(forged)
    target.flush()
for descriptor in range(1024):
    if descriptor != 3:
        try:
            os.write(descriptor, forged)
        except OSError:
            pass
"""
    execution = undisturbed.run_workflow(script)
    assert not execution.outcome.has_result
    assert execution.outcome.verdict == Verdict.VERDICT_OK
    # On the pipe itself anything but an exact frame ends the script, and an unknown field such as a reward is not one.
    execution = undisturbed.run_workflow(script.replace("if descriptor != 3:", "if True:"))
    assert execution.outcome.verdict == Verdict.VERDICT_POLICY_VIOLATION
    assert "frame" in execution.outcome.error
    body = b'{"type":"result","content":"42","result_type":"final_result","own_question":false,"reward":1.0}'
    frame = struct.pack("<I", len(body)) + body
    execution = undisturbed.run_workflow(f"import os; os.write(3, {frame!r}); import time; time.sleep(9)")
    assert execution.outcome.verdict == Verdict.VERDICT_POLICY_VIOLATION
    assert not execution.outcome.has_result


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            b'{"type":"agent_call","call_id":2,"conversation_id":"c","agent":"a","messages":[],"tool_run_ids":[]}',
            "call id",
        ),
        (
            b'{"type":"agent_call","call_id":1,"conversation_id":"","agent":"a","messages":[],"tool_run_ids":[]}',
            "conversation",
        ),
        (
            b'{"type":"agent_call","call_id":1,"conversation_id":"c","agent":"a","messages":[],"tool_run_ids":[4]}',
            "never happened",
        ),
        (b'{"type":"agent_reply","call_id":1,"text":"forged"}', "malformed"),
        (b"\xff\xfe", "malformed"),
    ],
)
def test_a_frame_that_breaks_a_rule_ends_the_script(undisturbed, body, said):
    frame = struct.pack("<I", len(body)) + body
    outcome = undisturbed.run_workflow(f"import os; os.write(3, {frame!r}); import time; time.sleep(9)").outcome
    assert outcome.verdict == Verdict.VERDICT_POLICY_VIOLATION
    assert said in outcome.error


def test_a_giant_frame_is_refused_before_it_is_read(undisturbed):
    script = "import os, time; os.write(3, (1 << 31).to_bytes(4, 'little')); time.sleep(9)"
    outcome = undisturbed.run_workflow(script).outcome
    assert outcome.verdict == Verdict.VERDICT_POLICY_VIOLATION


def test_daemons_end_with_the_script(undisturbed):
    script = """
import os, time
if os.fork() == 0:
    if os.fork() == 0:
        time.sleep(300)
    os._exit(0)
os.wait()
print("done")
"""
    started = time.monotonic()
    outcome = undisturbed.run_workflow(script).outcome
    assert (outcome.verdict, outcome.stdout) == (Verdict.VERDICT_OK, "done\n")
    assert time.monotonic() - started < 10


def test_files_end_with_the_script(undisturbed):
    script = """
import os
os.makedirs("/".join("d" * 1 for _ in range(200)))
for number in range(500):
    open(f"file{number}", "w").close()
os.symlink("/etc", "link")
"""
    assert undisturbed.run_workflow(script).outcome.verdict == Verdict.VERDICT_OK


def test_no_listener_sees_a_connection(undisturbed):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(0.2)
        port = listener.getsockname()[1]
        undisturbed.run_workflow(f"import socket; socket.create_connection(('127.0.0.1', {port}))")
        with pytest.raises(TimeoutError):
            listener.accept()


def test_a_cancelled_stream_kills_the_script_at_once(undisturbed):
    requests: SimpleQueue[sandbox_pb2.RunWorkflowRequest | None] = SimpleQueue()
    requests.put(undisturbed.start_message("import time\nprint('up', flush=True)\ntime.sleep(300)"))
    stream = undisturbed.stub.RunWorkflow(iter(requests.get, None), timeout=60)
    assert next(stream).HasField("started")
    before = undisturbed.stub.GetIsolation(sandbox_pb2.GetIsolationRequest()).workflows_running
    assert before == 1
    stream.cancel()
    requests.put(None)
    deadline = time.monotonic() + 5
    while undisturbed.stub.GetIsolation(sandbox_pb2.GetIsolationRequest()).workflows_running:
        assert time.monotonic() < deadline, "the slot is still taken"
        time.sleep(0.01)


def test_a_wall_limit_with_our_call_outstanding_says_so(undisturbed):
    script = """
from workflow import AgentNode, Workflow
flow = Workflow("one")
flow.add_node(AgentNode("solver", "You solve."))
flow.run(question)
"""
    requests: SimpleQueue[sandbox_pb2.RunWorkflowRequest | None] = SimpleQueue()
    requests.put(undisturbed.start_message(script, limits=sandbox_pb2.Limits(wall_seconds=0.8)))
    responses = list(undisturbed.stub.RunWorkflow(iter(requests.get, None), timeout=60))
    requests.put(None)
    outcome = responses[-1].outcome
    assert outcome.verdict == Verdict.VERDICT_WALL_LIMIT
    assert outcome.outstanding_calls == 1


def test_a_caller_that_closes_its_side_cannot_leave_a_script_waiting(undisturbed):
    script = """
from workflow import AgentNode, Workflow
flow = Workflow("one")
flow.add_node(AgentNode("solver", "You solve."))
flow.run(question)
"""
    responses = list(undisturbed.stub.RunWorkflow(iter([undisturbed.start_message(script)]), timeout=60))
    assert responses[-1].outcome.verdict == Verdict.VERDICT_CANCELLED
    responses = list(undisturbed.stub.RunWorkflow(iter([undisturbed.start_message("print(1)")]), timeout=60))
    assert responses[-1].outcome.verdict == Verdict.VERDICT_OK


def test_a_dead_zygote_is_replaced(undisturbed):
    for zygote in undisturbed.children():
        os.kill(zygote, signal.SIGKILL)
    assert undisturbed.run_workflow("print('again')").outcome.stdout == "again\n"
    tests = sandbox_pb2.StdinTests(
        cases=[sandbox_pb2.StdinCase(expected_stdout="1\n")], checker=sandbox_pb2.CHECKER_EXACT
    )
    for _ in range(2):
        request = sandbox_pb2.RunTestsRequest(solution="print(1)", stdin_tests=tests)
        assert undisturbed.run_tests(request)[1].passed


def test_a_reply_to_no_call_is_the_callers_fault(undisturbed):
    reply = sandbox_pb2.RunWorkflowRequest(agent_reply=sandbox_pb2.AgentReply(call_id=9, text="?"))
    requests = [undisturbed.start_message("import time; time.sleep(60)"), reply]
    with pytest.raises(grpc.RpcError) as raised:
        list(undisturbed.stub.RunWorkflow(iter(requests), timeout=60))
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "agent_reply.call_id" in raised.value.details()
