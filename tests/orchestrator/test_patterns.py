"""Patterns are read off the executed graph."""

import pytest
from troupe_orchestrator.patterns import NodeEvent, pattern_of

Call = tuple[str, str, list["Call"]]


def run(*calls: Call) -> list[NodeEvent]:
    """The events of nodes that ran one after another; each is (name, type, what ran within)."""
    events: list[NodeEvent] = []

    def visit(call: Call, parent: int) -> None:
        name, node_type, within = call
        number = sum(event.entered for event in events) + 1
        events.append(NodeEvent(True, number, parent, name, node_type))
        for inner in within:
            visit(inner, number)
        events.append(NodeEvent(False, number, parent, name, node_type, "agent_response"))

    for call in calls:
        visit(call, 0)
    return events


def agent(name: str) -> Call:
    return (name, "AgentNode", [])


VOTE: Call = ("v", "EnsembleNode", [agent("a"), agent("b"), agent("judge")])
REFLECTION: Call = ("r", "ReflectionNode", [agent("a"), agent("critic"), agent("a"), agent("critic")])


@pytest.mark.parametrize(
    ("calls", "pattern"),
    [
        ([], "none"),
        ([agent("a")], "single"),
        ([agent("a"), agent("b")], "chain"),
        ([VOTE], "vote"),
        ([agent("a"), VOTE], "chain+vote"),
        ([("d", "DebateNode", [agent("a"), agent("b"), agent("a"), agent("b")])], "debate"),
        ([REFLECTION], "reflection"),
        ([("v", "EnsembleNode", [agent("a"), REFLECTION])], "vote+reflection"),
        ([("x", "RouterNode", [agent("a")])], "router"),
        ([("x", "RouterNode", [VOTE])], "router+vote"),
        ([agent("a"), agent("a")], "loop"),
        ([agent("a"), agent("b"), agent("a"), agent("b")], "loop+chain"),
        ([("mine", "MyNode", [agent("a"), agent("b")])], "chain"),
        ([("mine", "MyNode", [agent("a")])], "single"),
        ([("mine", "MyNode", [])], "single"),
    ],
)
def test_a_pattern_is_told_from_the_nodes_that_ran(calls: list[Call], pattern: str) -> None:
    assert pattern_of(run(*calls)) == pattern


def test_nodes_that_run_at_the_same_time_are_a_graph() -> None:
    enter = [NodeEvent(True, number, 0, name, "AgentNode") for number, name in ((1, "a"), (2, "b"))]
    leave = [NodeEvent(False, number, 0, name, "AgentNode") for number, name in ((1, "a"), (2, "b"))]
    assert pattern_of([*enter, *leave]) == "graph"


def test_a_node_that_was_never_left_counts() -> None:
    assert pattern_of(run(agent("a"), agent("b"))[:3]) == "chain"


def test_parents_that_form_a_circle_end() -> None:
    circle = [NodeEvent(True, 1, 2, "a", "MyNode"), NodeEvent(True, 2, 1, "b", "MyNode")]
    assert pattern_of(circle) == "single"
