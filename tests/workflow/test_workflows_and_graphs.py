"""Lines, conditions, loops and graphs: all of them really run agents."""

from typing import Any

HEAD = """
from workflow import *
def agents(*names):
    return [AgentNode(name, "") for name in names]
"""


def order(done: Any) -> list[str]:
    return [call["agent"] for call in done.calls]


def test_a_workflow_stops_at_the_first_error_and_returns_it(run_script: Any) -> None:
    script = (
        HEAD
        + """
class Broken(WorkflowNode):
    def process(self, context):
        raise ValueError("out of order")
a, b = agents("A", "B")
result = Workflow().add_nodes([a, Broken("X"), b]).run(question)
print(result.message_type, result.content, result.sender)
"""
    )
    done = run_script(script, A="1", B="2")
    assert order(done) == ["A"]
    assert done.stdout == "MessageType.ERROR ValueError: out of order X\n"
    assert "out of order" in done.stderr
    assert [(f["node"], f["kind"], f["result_type"]) for f in done.of_type("node_event")] == [
        ("A", "enter", ""),
        ("A", "exit", "agent_response"),
        ("X", "enter", ""),
        ("X", "exit", "error"),
    ]


def test_a_node_of_the_scripts_own_takes_part(run_script: Any) -> None:
    script = (
        HEAD
        + """
class Shout(WorkflowNode):
    def process(self, context):
        last = context.get_latest_message(MessageType.AGENT_RESPONSE)
        context.set_state("shouted", True)
        return Message(last.content.upper(), MessageType.INTERMEDIATE)
a, b = agents("A", "B")
result = Workflow().add_nodes([a, Shout("S", loud=True), b]).run(question)
"""
    )
    done = run_script(script, A="twelve", B="12")
    assert done.asked("B") == ["What is 3 * 4?\nA: twelve\nS: TWELVE"]
    assert done.entered()[1] == ("S", "Shout")


def test_a_subclass_of_a_library_node_is_reported_as_that_node(run_script: Any) -> None:
    script = HEAD + 'class Mine(AgentNode):\n    pass\nWorkflow().add_node(Mine("M", "")).run(question)'
    assert run_script(script, M="1").entered() == [("M", "AgentNode")]


def test_a_node_that_returns_no_message_is_an_error(run_script: Any) -> None:
    script = (
        HEAD
        + """
class Text(WorkflowNode):
    def process(self, context):
        return "12"
Workflow().add_node(Text("T")).run(question)
"""
    )
    done = run_script(script)
    assert "the result of process must be Message, got '12' (str)" in done.result["content"]


def test_a_conditional_workflow_skips_what_is_not_due(run_script: Any) -> None:
    script = (
        HEAD
        + """
a, b, c = agents("A", "B", "C")
w = ConditionalWorkflow()
w.add_node(a).add_node(b, lambda context: "hard" in context.get_latest_message().content)
w.add_node(c, condition=lambda context: context.get_state("extra"))
w.run(question, initial_state={"extra": True})
"""
    )
    assert order(run_script(script, A="easy", B="2", C="3")) == ["A", "C"]
    assert order(run_script(script, A="hard", B="2", C="3")) == ["A", "B", "C"]


def test_a_loop_runs_until_its_condition_is_false(run_script: Any) -> None:
    script = (
        HEAD
        + """
w = LoopWorkflow(max_iterations=5).set_loop_condition(lambda c: "done" not in c.get_latest_message().content)
w.add_node(agents("A")[0])
print(w.run(question).content)
"""
    )
    done = run_script(script, A=["one", "two", "done"])
    assert done.asked("A") == ["What is 3 * 4?", "What is 3 * 4?\nA: one", "What is 3 * 4?\nA: two"]
    assert done.stdout == "done\n"
    assert [call["conversation_id"] for call in done.calls] == ["A#1", "A#2", "A#3"]


def test_a_loop_ends_at_its_limit_and_at_an_error(run_script: Any, refusal: Any) -> None:
    script = (
        HEAD
        + """
w = LoopWorkflow(max_iterations=3).set_loop_condition(lambda context: True)
w.add_node(agents("A")[0])
w.run(question)
"""
    )
    assert len(run_script(script, A="again").calls) == 3
    done = run_script(script, A=["again", refusal("spent")])
    assert len(done.calls) == 2
    assert done.result["result_type"] == "error"


def test_a_loop_without_a_condition_says_what_is_missing(run_script: Any) -> None:
    done = run_script(HEAD + "LoopWorkflow().add_node(agents('A')[0]).run(question)", A="1")
    assert done.exit_code == 1
    assert "set_loop_condition first" in done.stderr


def test_a_chain_is_a_graph_in_a_line(run_script: Any) -> None:
    script = HEAD + 'create_simple_chain(("r", AgentNode("R", "")), ("s", AgentNode("S", ""))).run(question)'
    done = run_script(script, R="<delivery>3 * 4</delivery>", S="12")
    assert done.asked("S") == ["What is 3 * 4?\nR: 3 * 4"]
    assert done.results == ["12"]


GRAPH = (
    HEAD
    + """
g = AgentGraph({options})
for name in {names!r}:
    g.add_node(name.lower(), AgentNode(name, ""))
{edges}
print(g.run(question).content)
"""
)


def test_conditional_edges_lead_around_a_loop_until_the_finish_point(run_script: Any) -> None:
    edges = """
g.add_edge("a", "b")
g.add_edge("b", "a", condition=lambda context: "wrong" in context.get_latest_message().content)
g.add_edge("b", "c", condition=lambda context: "right" in context.get_latest_message().content)
g.set_entry_point("a").set_finish_point("c")
"""
    done = run_script(GRAPH.format(options="", names="ABC", edges=edges), A="1", B=["wrong", "right"], C="12")
    assert order(done) == ["A", "B", "A", "B", "C"]
    assert done.stdout == "12\n"


def test_a_routing_function_replaces_edges_and_an_unknown_name_ends(run_script: Any) -> None:
    edges = """
g.add_edge("a", "b")
g.add_conditional_edges("a", lambda context: "c" if "c" in context.get_latest_message().content else "END")
g.set_entry_point("a").set_finish_point("b")
"""
    script = GRAPH.format(options="", names="ABC", edges=edges)
    assert order(run_script(script, A="to c", B="2", C="3")) == ["A", "C"]
    assert order(run_script(script, A="stop", B="2", C="3")) == ["A"]


def test_branches_of_unequal_length_meet_in_one_visit(run_script: Any) -> None:
    edges = """
for edge in ("ab", "ac", "cd", "be", "de"):
    g.add_edge(*edge)
g.set_entry_point("a").set_finish_point("e")
"""
    done = run_script(GRAPH.format(options="", names="ABCDE", edges=edges), A="1", B="2", C="3", D="4", E="5")
    assert sorted(order(done)[1:3]) == ["B", "C"]
    assert order(done)[3:] == ["D", "E"]
    assert done.asked("E") == ["What is 3 * 4?\nA: 1\nB: 2\nC: 3\nD: 4"]
    ids = {call["agent"]: call["conversation_id"] for call in done.calls}
    assert ids == {"A": "A#1", "B": "B#2.1.1", "C": "C#2.2.1", "D": "D#3", "E": "E#4"}


def test_a_graph_ends_after_its_steps(run_script: Any) -> None:
    edges = 'g.add_edge("a", "b")\ng.add_edge("b", "a")\ng.set_entry_point("a").set_finish_point("c")'
    done = run_script(GRAPH.format(options="max_steps=5", names="ABC", edges=edges), A="1", B="2", C="3")
    assert order(done) == ["A", "B", "A", "B", "A"]


def test_an_error_in_a_branch_ends_the_graph(run_script: Any, refusal: Any) -> None:
    edges = """
for edge in ("ab", "ac", "bd", "cd"):
    g.add_edge(*edge)
g.set_entry_point("a").set_finish_point("d")
"""
    done = run_script(GRAPH.format(options="", names="ABCD", edges=edges), A="1", B=refusal("spent"), C="3", D="4")
    assert sorted(order(done)) == ["A", "B", "C"]
    assert done.result["result_type"] == "error"


def test_a_graph_without_entry_or_finish_says_what_is_missing(run_script: Any) -> None:
    for edges, missing in (
        ("", "set_entry_point first"),
        ('g.set_entry_point("a")', "set_finish_point first"),
    ):
        done = run_script(GRAPH.format(options="", names="A", edges=edges), A="1")
        assert done.exit_code == 1
        assert missing in done.stderr


def test_run_with_context_adds_to_the_context_that_it_is_given(run_script: Any) -> None:
    script = (
        HEAD
        + """
context = Context()
context.add_message(Message(question, MessageType.USER_INPUT))
Workflow().add_node(agents("A")[0]).run_with_context(context)
AgentGraph().add_node("b", agents("B")[0]).set_entry_point("b").set_finish_point("b").run_with_context(context)
print([m.sender for m in context.messages])
"""
    )
    done = run_script(script, A="1", B="2")
    assert done.stdout == "[None, 'A', 'B']\n"
    assert done.results == ["1", "2"]
    assert done.asked("B") == ["What is 3 * 4?\nA: 1"]


def test_only_a_top_level_run_reports_a_result_and_inner_visits_know_their_parent(run_script: Any) -> None:
    script = (
        HEAD
        + """
class Inner(WorkflowNode):
    def process(self, context):
        return Workflow().add_node(AgentNode("A", "")).run("2 * 2")
Workflow().add_node(Inner("I")).run(question)
"""
    )
    done = run_script(script, A="4")
    assert done.results == ["4"]
    assert done.result["own_question"] is False
    enters = [frame for frame in done.of_type("node_event") if frame["kind"] == "enter"]
    assert [(f["node"], f["visit_id"], f["parent_visit_id"]) for f in enters] == [("I", 1, 0), ("A", 2, 1)]
