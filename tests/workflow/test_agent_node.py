"""One agent: what it sees, how its tools run, when it ends."""

import json
from typing import Any

import pytest

ONE_AGENT = """
from workflow import AgentNode, Workflow
Workflow("w").add_node(AgentNode("Solver", "Solve it.", max_turns={turns})).run(question)
"""
FENCE = "Let me compute.\n```python\nprint({})\n```"


def test_the_first_agent_sees_exactly_the_question(run_script: Any) -> None:
    done = run_script(ONE_AGENT.format(turns=1), start={"delivery_instruction": "Deliver."}, Solver=r"\boxed{12}")
    assert done.calls == [
        {
            "type": "agent_call",
            "call_id": 1,
            "conversation_id": "Solver#1",
            "agent": "Solver",
            "messages": [
                {"role": "system", "content": "Solve it.\nDeliver."},
                {"role": "user", "content": "What is 3 * 4?"},
            ],
            "tool_run_ids": [],
        }
    ]


def test_an_empty_system_message_is_left_out(run_script: Any) -> None:
    script = 'from workflow import *\nWorkflow().add_node(AgentNode("A", "")).run(question)'
    done = run_script(script, A="12")
    assert [message["role"] for message in done.calls[0]["messages"]] == ["user"]


def test_a_fenced_block_runs_outside_and_its_output_comes_back_attested(run_script: Any) -> None:
    done = run_script(ONE_AGENT.format(turns=5), Solver=[FENCE.format("3 * 4"), r"\boxed{12}"])
    [run] = done.of_type("tool_call")
    assert run["code"] == "print(3 * 4)"
    assert run["conversation_id"] == "Solver#1"
    assert run["timeout_seconds"] is None
    assert done.calls[1]["messages"] == [{"role": "tool", "content": "12"}]
    assert done.calls[1]["tool_run_ids"] == [1000 + run["call_id"]]
    assert done.calls[1]["conversation_id"] == "Solver#1"
    assert [frame["call_id"] for frame in done.frames if "call_id" in frame] == [1, 2, 3]


def test_a_failed_run_is_shown_with_its_verdict(run_script: Any) -> None:
    done = run_script(ONE_AGENT.format(turns=5), Solver=[FENCE.format("1 / 0"), "12"])
    assert done.asked("Solver")[1] == "ZeroDivisionError: division by zero\n[runtime_error]"


def test_after_the_last_reactive_turn_a_final_answer_is_asked_for_and_runs_nothing(run_script: Any) -> None:
    done = run_script(ONE_AGENT.format(turns=1), Solver=FENCE.format("3 * 4"))
    assert len(done.calls) == 3
    assert [m["role"] for m in done.calls[1]["messages"]] == ["tool"]
    assert done.calls[2]["messages"] == [
        {"role": "tool", "content": "12"},
        {"role": "user", "content": "Give your final answer now. Use no tool."},
    ]
    assert len(done.of_type("tool_call")) == 2
    assert done.results == [FENCE.format("3 * 4")]


@pytest.mark.parametrize(
    "answer",
    [
        "```python\nprint(1)\n```",
        "<solution>\n```python\nprint(1)\n```\n</solution>",
        "<delivery>```python\nprint(1)\n```</delivery> <solution>print(1)</solution>",
    ],
)
def test_a_program_in_a_fence_is_the_answer_of_a_code_task(run_script: Any, answer: str) -> None:
    done = run_script(ONE_AGENT.format(turns=5), start={"task_type": "code"}, Solver=answer)
    assert len(done.calls) == 1
    assert done.of_type("tool_call") == []
    assert done.results == [answer]


def test_a_fence_inside_a_delivery_or_a_thought_does_not_run(run_script: Any) -> None:
    quiet = "<think>```python\nprint(1)\n```</think><delivery>```python\nprint(2)\n```</delivery>"
    done = run_script(ONE_AGENT.format(turns=5), Solver=quiet)
    assert done.of_type("tool_call") == []


CODE_WITH_PYTHON = """
from workflow import AgentNode, Workflow, ToolRegistry
from utils.environments.math_env import MathEnvironment
tools = ToolRegistry()
tools.register("python_execute", MathEnvironment(timeout=9).execute, "Runs python.", {
    "type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]})
Workflow().add_node(AgentNode("Solver", "Solve it.", tools)).run(question)
"""


def test_with_a_python_tool_a_code_agent_tests_once_and_the_same_program_again_is_its_answer(
    run_script: Any,
) -> None:
    done = run_script(CODE_WITH_PYTHON, start={"task_type": "code"}, Solver=FENCE.format("3 * 4"))
    assert len(done.calls) == 2
    assert len(done.of_type("tool_call")) == 1
    assert done.results == [FENCE.format("3 * 4")]


def test_a_tool_call_of_the_math_environment_is_attested_for_the_agents_conversation(run_script: Any) -> None:
    call = '<tool_call>{"name": "python_execute", "arguments": {"code": "print(6 * 7)"}}</tool_call>'
    done = run_script(CODE_WITH_PYTHON, Solver=[call, r"\boxed{42}"])
    [run] = done.of_type("tool_call")
    assert (run["code"], run["conversation_id"], run["timeout_seconds"]) == ("print(6 * 7)", "Solver#1", 9)
    assert done.calls[1]["messages"] == [{"role": "tool", "content": "42"}]
    assert done.calls[1]["tool_run_ids"] == [1000 + run["call_id"]]


def test_python_that_the_script_runs_itself_belongs_to_no_conversation(run_script: Any) -> None:
    script = "from utils.environments.math_env import python_execute\nprint(python_execute('print(5)'))"
    done = run_script(script)
    [run] = done.of_type("tool_call")
    assert (run["conversation_id"], run["timeout_seconds"]) == ("", 120)
    assert done.stdout == "5\n"


OWN_TOOL = """
from workflow import AgentNode, Workflow, ToolRegistry
tools = ToolRegistry()
def add(a: int, b: int = 1):
    return a + b
def fail():
    raise KeyError("no such thing")
tools.register("add", add, "Adds.")
tools.register("fail", fail, "Fails.")
tools.register("long", lambda: "x" * 20000, "Long.")
Workflow().add_node(AgentNode("Solver", "Solve it.", tools)).run(question)
"""


def test_an_agent_is_told_its_tools_as_schemas(run_script: Any) -> None:
    done = run_script(OWN_TOOL, start={"delivery_instruction": "Deliver."}, Solver="12")
    first, second, title, *schemas, how = done.calls[0]["messages"][0]["content"].split("\n")
    assert (first, second, title) == ("Solve it.", "Deliver.", "Tools:")
    assert json.loads(schemas[0]) == {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds.",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
                "required": ["a"],
            },
        },
    }
    assert '<tool_call>{"name": "TOOL", "arguments": {...}}</tool_call>' in how


@pytest.mark.parametrize(
    ("call", "shown"),
    [
        ('{"name": "add", "arguments": {"a": 2}}', "3"),
        ('{"name": "add", "parameters": {"a": 2, "b": 5}}', "7"),
        ('{"name": "fail"}', "Error: KeyError: 'no such thing'"),
        ('{"name": "divide", "arguments": {}}', "there is no tool divide; there are: add, fail, long"),
        ('{"name": "add", "arguments": {"c": 1}}', "unexpected keyword argument 'c'"),
        ('{"arguments": {}}', "the tool call has no name"),
        ("{not json", "the tool call is not JSON"),
        ('{"name": "add", "arguments": [1]}', "are not an object"),
        ('{"name": "long", "arguments": {}}', "[3616 more characters were cut]"),
    ],
)
def test_a_tool_call_gets_its_result_or_what_was_wrong_with_it(run_script: Any, call: str, shown: str) -> None:
    done = run_script(OWN_TOOL, Solver=[f"<tool_call>{call}</tool_call>", "12"])
    [message] = done.calls[1]["messages"]
    assert message["role"] == "tool"
    assert shown in message["content"]


def test_several_tool_calls_in_one_turn_each_get_a_message(run_script: Any) -> None:
    calls = "".join(f'<tool_call>{{"name": "add", "arguments": {{"a": {n}}}}}</tool_call>' for n in (1, 2))
    done = run_script(OWN_TOOL, Solver=[calls, "12"])
    assert [message["content"] for message in done.calls[1]["messages"]] == ["2", "3"]


def test_later_agents_see_the_delivery_of_each_earlier_one_or_all_it_said(run_script: Any) -> None:
    script = """
from workflow import AgentNode, Workflow
w = Workflow()
w.add_nodes([AgentNode(name, "") for name in ("Reader", "Planner", "Solver")])
w.run(question)
"""
    done = run_script(script, Reader="I read.<delivery>\n3 * 4\n</delivery>", Planner=" Multiply. ", Solver="12")
    assert done.asked("Solver") == ["What is 3 * 4?\nReader: 3 * 4\nPlanner: Multiply."]
    assert [call["conversation_id"] for call in done.calls] == ["Reader#1", "Planner#2", "Solver#3"]


def test_a_refusal_is_an_error_of_that_agent_and_ends_the_run(run_script: Any, refusal: Any) -> None:
    script = """
from workflow import AgentNode, Workflow
result = Workflow().add_nodes([AgentNode("A", ""), AgentNode("B", "")]).run(question)
print(result.message_type.value, result.metadata["exception_type"], result.sender)
"""
    done = run_script(script, A=refusal("the token budget is spent"), B="12")
    assert done.stdout == "error AgentRefused A\n"
    assert [call["agent"] for call in done.calls] == ["A"]
    assert done.result["result_type"] == "error"
    assert "the token budget is spent" in done.result["content"]
    assert done.of_type("node_event")[-1]["result_type"] == "error"
    assert (done.exit_code, done.stderr) == (0, "")


def test_text_that_utf8_cannot_say_does_not_break_the_pipe(run_script: Any) -> None:
    script = """
from workflow import *
Workflow().add_node(AgentNode("A", "half \\ud800, whole \\U0001F600")).run(question)
"""
    done = run_script(script, A="é")
    assert done.calls[0]["messages"][0]["content"] == "half ?, whole \U0001f600"
    assert done.results == ["é"]


def test_a_prompt_beyond_the_frame_limit_is_an_error_of_that_agent(run_script: Any) -> None:
    script = 'from workflow import *\nWorkflow().add_node(AgentNode("A", "x" * 2**20)).run(question)'
    done = run_script(script, A="12")
    assert done.calls == []
    assert "beyond the limit of 1048576" in done.result["content"]
