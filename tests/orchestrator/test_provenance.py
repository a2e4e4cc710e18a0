"""A result counts only if somebody recorded said so."""

import time

import pytest
from troupe_orchestrator.provenance import (
    ProvenanceReason,
    RecordedConversation,
    answer_in_script,
    trace_result,
)
from troupe_orchestrator.tree import ToolRunRecord

SOLVER = RecordedConversation("solver#1", (r"<delivery>\boxed{42}</delivery>",))
ASKED = "Let me compute.\n```python\nprint(6 * 7)\n```\n"


def run(
    code: str = "print(6 * 7)", output: str = "42\n", conversation: str = "solver#1", verdict: str = "ok"
) -> ToolRunRecord:
    return ToolRunRecord(1, conversation, code, output, verdict)


@pytest.mark.parametrize(
    "result", [r"<delivery>\boxed{42}</delivery>", r"\boxed{42.0}", "42", r"So it is \boxed{ 42 }."]
)
def test_a_result_that_a_turn_gave_counts_however_it_is_written(result: str) -> None:
    traced = trace_result(result, "math", [SOLVER], [])
    assert (traced.ok, traced.reason, traced.conversation_id) == (True, ProvenanceReason.TURN, "solver#1")
    assert traced.turn == SOLVER.turns[0]


@pytest.mark.parametrize(
    ("result", "conversations", "reason"),
    [
        (r"<delivery>\boxed{42}</delivery>", [], ProvenanceReason.NO_TURNS),
        (r"\boxed{42}", [RecordedConversation("a#1", ())], ProvenanceReason.NO_TURNS),
        (r"\boxed{43}", [SOLVER], ProvenanceReason.NO_SOURCE),
        (r"\boxed{42} no, \boxed{43}", [SOLVER], ProvenanceReason.NO_SOURCE),
        (r"\boxed{42.0000001}", [SOLVER], ProvenanceReason.NO_SOURCE),
        ("", [SOLVER], ProvenanceReason.NO_ANSWER),
        ("two\nlines", [SOLVER], ProvenanceReason.NO_ANSWER),
        (r"\boxed{4}", [RecordedConversation("a#1", (r"I mention 4 and \boxed{42}",))], ProvenanceReason.NO_SOURCE),
    ],
)
def test_a_result_that_no_turn_gave_does_not_count(
    result: str, conversations: list[RecordedConversation], reason: ProvenanceReason
) -> None:
    traced = trace_result(result, "math", conversations, [])
    assert (traced.ok, traced.reason) == (False, reason)


def test_the_output_of_a_run_that_a_turn_asked_for_counts() -> None:
    traced = trace_result("42", "math", [RecordedConversation("solver#1", (ASKED,))], [run()])
    assert (traced.ok, traced.reason, traced.turn) == (True, ProvenanceReason.TOOL_RUN, ASKED)
    call = '<tool_call>{"name": "python", "arguments": {"code": "print(6 * 7)"}}</tool_call>'
    assert trace_result("42", "math", [RecordedConversation("solver#1", (call,))], [run()]).ok


@pytest.mark.parametrize(
    "tool_run",
    [
        run(code="print(42)"),
        run(conversation="other#1"),
        run(conversation=""),
        run(verdict="cpu_limit"),
        run(output="43\n"),
    ],
)
def test_the_output_of_any_other_run_does_not_count(tool_run: ToolRunRecord) -> None:
    traced = trace_result("42", "math", [RecordedConversation("solver#1", (ASKED,))], [tool_run])
    assert (traced.ok, traced.reason) == (False, ProvenanceReason.NO_SOURCE)


def test_a_formatted_turn_is_preferred_as_source_and_then_the_last() -> None:
    conversations = [SOLVER, RecordedConversation("echo#2", ("42",))]
    assert trace_result("42", "math", conversations, []).conversation_id == "solver#1"
    assert (
        trace_result("42", "math", [SOLVER, RecordedConversation("b#3", (r"\boxed{42}",))], []).conversation_id == "b#3"
    )


def test_a_program_may_differ_from_its_turn_in_white_space_only() -> None:
    turn = "<solution>\n```python\nfor i in range(3):\n    print(i)\n```\n</solution>"
    conversations = [RecordedConversation("coder#1", (turn,))]
    assert trace_result(turn, "code", conversations, []).ok
    assert trace_result("\n  for i in range(3):  \n\n      print(i)\n", "code", conversations, []).ok
    assert not trace_result("for i in range(4):\n    print(i)", "code", conversations, []).ok
    assert not trace_result("for i in range(3):\n    pass\nprint(i)", "code", conversations, []).ok


@pytest.mark.parametrize(
    ("script", "answer", "stands"),
    [
        ("AgentNode('a', 'The answer is 42.')", "42", True),
        ("AgentNode('a', 'The answer is 42')", "42.0", True),
        ("AgentNode('a', 'The answer is 1,042')", "1042", True),
        ("AgentNode('a', 'compute 1042 or 420 or 4.2 or a42')", "42", False),
        ("AgentNode('a', 'compute 42.5')", "42", False),
        ("x = -5", "-5", True),
        ("AgentNode('a', 'it is Monday')", r"\text{Monday}", False),
        ("AgentNode('a', 'it is Monday')", "Monday", True),
        (r"AgentNode('a', 'half is \frac{1}{2}')", r"\frac{1}{2}", True),
        ("AgentNode('a', 'solve it')", "", False),
    ],
)
def test_an_answer_stands_in_a_script_as_a_whole_token(script: str, answer: str, stands: bool) -> None:
    assert answer_in_script(script, answer, "math") is stands


@pytest.mark.parametrize(
    "answer", ["(1," * 900 + "1" + ")" * 900, ",".join(map(str, range(600))), "a" + " " * 100_000 + "b", "1," * 50_000]
)
def test_answers_beyond_all_bounds_are_compared_as_written_and_in_no_time(answer: str) -> None:
    begun = time.process_time()
    conversations = [RecordedConversation("a#1", (rf"\boxed{{{answer}}}",))]
    assert trace_result(rf"\boxed{{{answer}}}", "math", conversations, []).ok
    assert not trace_result(rf"\boxed{{{answer[:-1]}7}}", "math", conversations, []).ok
    answer_in_script("solve it", answer, "math")
    assert time.process_time() - begun < 2


def test_a_program_stands_in_a_script_as_its_lines() -> None:
    assert answer_in_script("PROGRAM = '''\nprint(1)\nprint(2)\n'''", "print(1)\n\nprint(2)", "code")
    assert not answer_in_script("print(3)", "print(1)", "code")
