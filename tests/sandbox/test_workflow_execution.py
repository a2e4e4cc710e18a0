"""Scripts that behave, through the real service: agents, tools, children, results."""

import time
from queue import SimpleQueue

import pytest
from troupe.v1 import common_pb2, sandbox_pb2

Verdict = sandbox_pb2.Verdict

VOTE = """
from workflow import AgentNode, EnsembleNode, Workflow
agents = [AgentNode(f"solver{i}", "You solve.") for i in range(8)]
flow = Workflow("vote")
flow.add_node(EnsembleNode("vote", agents, strategy="majority_vote"))
flow.run(question)
"""

PYTHON_AGENT = """
from workflow import AgentNode, Workflow
from utils.environments.math_env import MathEnvironment
flow = Workflow("tool")
flow.add_node(AgentNode("coder", "You compute with python."))
flow.run(question)
"""

RAW_TOOL = """
from workflow.tools import run_python
print(repr(run_python(CODE, None)))
"""


def tool_output(server, code: str, **fields: object) -> sandbox_pb2.ToolRun:
    execution = server.run_workflow(RAW_TOOL.replace("CODE", repr(code)), **fields)
    assert execution.outcome.verdict == Verdict.VERDICT_OK, execution.outcome
    assert len(execution.tool_runs) == 1
    return execution.tool_runs[0]


def test_a_script_prints_and_ends(undisturbed):
    execution = undisturbed.run_workflow("print('hello'); import sys; print('there', file=sys.stderr)")
    outcome = execution.outcome
    assert outcome.verdict == Verdict.VERDICT_OK
    assert (outcome.stdout, outcome.stderr) == ("hello\n", "there\n")
    assert not outcome.has_result
    assert execution.started is not None
    assert outcome.profile == execution.started.profile == undisturbed.profile


def test_members_of_an_ensemble_are_in_flight_together(undisturbed):
    queue: SimpleQueue[sandbox_pb2.RunWorkflowRequest | None] = SimpleQueue()
    queue.put(undisturbed.start_message(VOTE))
    waiting: list[sandbox_pb2.AgentCall] = []
    outcome = sandbox_pb2.WorkflowOutcome()
    for response in undisturbed.stub.RunWorkflow(iter(queue.get, None), timeout=60):
        if response.HasField("agent_call"):
            waiting.append(response.agent_call)
            # Nothing is answered until all eight calls are outstanding, and then in another order.
            if len(waiting) == 8:
                for call in reversed(waiting):
                    reply = sandbox_pb2.AgentReply(call_id=call.call_id, text=r"\boxed{42}")
                    queue.put(sandbox_pb2.RunWorkflowRequest(agent_reply=reply))
        elif response.HasField("outcome"):
            outcome = response.outcome
    queue.put(None)
    assert sorted(call.agent for call in waiting) == [f"solver{i}" for i in range(8)]
    assert outcome.verdict == Verdict.VERDICT_OK, outcome
    assert outcome.has_result
    assert "42" in outcome.result
    assert outcome.agent_calls == 8
    assert outcome.outstanding_calls == 0
    assert outcome.use.waiting_seconds > 0


def test_nodes_are_reported_as_they_are_entered_and_left(undisturbed):
    execution = undisturbed.run_workflow(VOTE, lambda call: r"\boxed{42}")
    kinds = [(event.kind, event.node_type) for event in execution.node_events]
    assert (sandbox_pb2.NodeEvent.KIND_ENTER, "EnsembleNode") in kinds
    assert (sandbox_pb2.NodeEvent.KIND_EXIT, "EnsembleNode") in kinds


def test_an_agents_python_is_run_apart_and_attested(undisturbed):
    replies = iter(["Let me compute.\n```python\nprint(6 * 7)\n```", r"It is \boxed{42}."])
    execution = undisturbed.run_workflow(PYTHON_AGENT, lambda call: next(replies))
    assert execution.outcome.verdict == Verdict.VERDICT_OK, execution.outcome
    (run,) = execution.tool_runs
    assert (run.code.strip(), run.output, run.verdict) == ("print(6 * 7)", "42\n", Verdict.VERDICT_OK)
    assert run.conversation_id == execution.agent_calls[0].conversation_id
    second = execution.agent_calls[1]
    assert list(second.tool_run_ids) == [run.tool_run_id]
    assert "42" in second.messages[-1].content
    assert second.messages[-1].role in (common_pb2.MESSAGE_ROLE_TOOL, common_pb2.MESSAGE_ROLE_USER)


def test_a_refusal_is_an_error_of_that_agent(undisturbed):
    script = """
from workflow import AgentNode, Workflow
flow = Workflow("one")
flow.add_node(AgentNode("solver", "You solve."))
result = flow.run(question)
print(result.message_type, result.content)
"""
    queue: SimpleQueue[sandbox_pb2.RunWorkflowRequest | None] = SimpleQueue()
    queue.put(undisturbed.start_message(script))
    for response in undisturbed.stub.RunWorkflow(iter(queue.get, None), timeout=60):
        if response.HasField("agent_call"):
            reply = sandbox_pb2.AgentReply(call_id=response.agent_call.call_id, refusal="budget spent")
            queue.put(sandbox_pb2.RunWorkflowRequest(agent_reply=reply))
        elif response.HasField("outcome"):
            assert "budget spent" in response.outcome.stdout + response.outcome.result
            assert response.outcome.result_type == "error"
    queue.put(None)


def test_calls_beyond_the_budget_are_refused_and_never_reach_the_caller(undisturbed):
    execution = undisturbed.run_workflow(VOTE, lambda call: r"\boxed{42}", max_agent_calls=3)
    assert len(execution.agent_calls) == execution.outcome.agent_calls == 3


@pytest.mark.parametrize(
    ("code", "output"),
    [
        ("print(1)\n2", "1\n"),
        ("x = 20\nx + 1", "21\n"),
        ("x = 20", ""),
        ("None", ""),
        ("'é'", "'é'\n"),
        ("import sys; sys.exit(0)", ""),
        ("from fractions import Fraction\nFraction(1, 3)", "Fraction(1, 3)\n"),
    ],
)
def test_a_tool_shows_what_is_printed_or_else_the_last_value(undisturbed, code, output):
    run = tool_output(undisturbed, code)
    assert (run.output, run.verdict) == (output, Verdict.VERDICT_OK)


def test_a_tools_traceback_follows_its_output(undisturbed):
    run = tool_output(undisturbed, "print('before')\n1 / 0")
    assert run.verdict == Verdict.VERDICT_RUNTIME_ERROR
    assert run.output.startswith("before\nTraceback")
    assert run.output.endswith("ZeroDivisionError: division by zero")
    assert "inside.py" not in run.output
    assert tool_output(undisturbed, "def f(:").output.endswith("SyntaxError: invalid syntax")


@pytest.mark.parametrize(
    ("code", "limits", "verdict"),
    [
        ("while True: pass", {"cpu_seconds": 0.2}, Verdict.VERDICT_CPU_LIMIT),
        ("import time; time.sleep(60)", {"wall_seconds": 0.3}, Verdict.VERDICT_WALL_LIMIT),
        ("x = 'a' * 10**10", {"memory_bytes": 64 << 20}, Verdict.VERDICT_MEMORY_LIMIT),
        ("while True: print('x' * 1000)", {"output_bytes": 10_000}, Verdict.VERDICT_OUTPUT_LIMIT),
        ("import os; os.fork()", {}, Verdict.VERDICT_PROCESS_LIMIT),
        ("import socket; socket.socket()", {}, Verdict.VERDICT_POLICY_VIOLATION),
    ],
)
def test_a_tools_limits_are_its_own(undisturbed, code, limits, verdict):
    run = tool_output(undisturbed, code, tool_limits=sandbox_pb2.Limits(**limits))
    assert run.verdict == verdict


def test_a_tools_time_counts_towards_the_execution(undisturbed):
    script = RAW_TOOL.replace("CODE", repr("while True: pass")) * 3
    limits = {"limits": sandbox_pb2.Limits(cpu_seconds=0.7), "tool_limits": sandbox_pb2.Limits(cpu_seconds=0.4)}
    outcome = undisturbed.run_workflow(script, **limits).outcome
    assert outcome.verdict == Verdict.VERDICT_CPU_LIMIT
    assert outcome.use.cpu_seconds > 0.7


def test_a_script_may_start_the_interpreter(undisturbed):
    script = """
import subprocess, sys
code = "import math; print(math.factorial(10))"
for program in ("python", "python3", sys.executable):
    done = subprocess.run([program, "-c", code], capture_output=True, text=True, timeout=20)
    print(done.returncode, done.stdout.strip(), done.stderr)
"""
    outcome = undisturbed.run_workflow(script, limits=sandbox_pb2.Limits(cpu_seconds=20)).outcome
    assert outcome.verdict == Verdict.VERDICT_OK, outcome
    assert outcome.stdout == "0 3628800 \n" * 3


def test_four_children_run_at_once_and_a_fifth_ends_the_script(undisturbed):
    script = """
import subprocess, sys
children = [subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) for _ in range(COUNT)]
for child in children:
    child.communicate(b"\\n")
print([child.returncode for child in children])
"""
    limits = sandbox_pb2.Limits(cpu_seconds=20)
    outcome = undisturbed.run_workflow(script.replace("COUNT", "4"), limits=limits).outcome
    assert (outcome.verdict, outcome.stdout) == (Verdict.VERDICT_OK, "[0, 0, 0, 0]\n"), outcome
    outcome = undisturbed.run_workflow(script.replace("COUNT", "5"), limits=limits).outcome
    assert outcome.verdict == Verdict.VERDICT_PROCESS_LIMIT, outcome


def test_the_work_directory_is_private_and_new_for_each_execution(undisturbed):
    script = """
import os, tempfile
print(sorted(os.listdir(".")))
with open("note.txt", "w") as note:
    note.write("mine")
print(open("note.txt").read(), os.path.exists(tempfile.mkdtemp()))
"""
    for _ in range(2):
        outcome = undisturbed.run_workflow(script).outcome
        assert (outcome.verdict, outcome.stdout) == (Verdict.VERDICT_OK, "[]\nmine True\n"), outcome


def test_waiting_for_agents_costs_no_cpu_and_is_told_apart(undisturbed):
    def slowly(call: sandbox_pb2.AgentCall) -> str:
        time.sleep(0.4)
        return r"\boxed{1}"

    script = VOTE.replace("range(8)", "range(1)")
    outcome = undisturbed.run_workflow(script, slowly, limits=sandbox_pb2.Limits(cpu_seconds=0.3)).outcome
    assert outcome.verdict == Verdict.VERDICT_OK, outcome
    assert outcome.use.waiting_seconds >= 0.4
    assert outcome.use.cpu_seconds < 0.3


def test_a_failing_script_shows_its_traceback(undisturbed):
    outcome = undisturbed.run_workflow("def broken():\n    raise ValueError('no plan')\nbroken()").outcome
    assert outcome.verdict == Verdict.VERDICT_RUNTIME_ERROR
    assert outcome.error.endswith("ValueError: no plan")
    assert 'File "<design>", line 2, in broken' in outcome.error
    outcome = undisturbed.run_workflow("this is no python").outcome
    assert outcome.verdict == Verdict.VERDICT_RUNTIME_ERROR
    assert "SyntaxError" in outcome.error


def test_random_numbers_follow_the_seed(undisturbed):
    script = "import random; print(random.random())"
    first, again, other = (undisturbed.run_workflow(script, seed=seed).outcome.stdout for seed in (5, 5, 2**63))
    assert first == again != other
