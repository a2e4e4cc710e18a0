"""A wrong argument is a clear error where it is passed."""

from typing import Any

import pytest
from troupe_workflow.library.workflow import (
    AgentGraph,
    AgentNode,
    ConditionalWorkflow,
    Context,
    DebateNode,
    EnsembleNode,
    LoopWorkflow,
    Message,
    ReflectionNode,
    RouterNode,
    ToolRegistry,
    Workflow,
    WorkflowNode,
    create_keyword_router,
    create_simple_chain,
)
from troupe_workflow.library.workflow.math_environment import MathEnvironment

A = AgentNode("A", "")
GRAPH = AgentGraph().add_node("a", A)
ROUTES: dict[str, WorkflowNode] = {"default": A}


def route(context: Context) -> str:
    return "default"


# Each entry: what is called, and what the error says.
REFUSED: list[tuple[Any, str]] = [
    (lambda: AgentNode(3, ""), "AgentNode: name must be a string, got 3 (int)"),
    (lambda: AgentNode("", ""), "name must be one printable line"),
    (lambda: AgentNode("A\nB", ""), "name must be one printable line"),
    (lambda: AgentNode("A", None), "system_prompt must be str, got None (NoneType)"),
    (
        lambda: AgentNode("A", "", max_turns="..."),
        "max_turns must be an integer of at least 0, got '...' (str)",
    ),
    (lambda: AgentNode("A", "", max_turns=1.5), "max_turns must be an integer"),
    (lambda: AgentNode("A", "", max_turns=True), "max_turns must be an integer"),
    (lambda: AgentNode("A", "", max_turns=-1), "at least 0, got -1"),
    (lambda: AgentNode("A", "", tool_registry=[]), "tool_registry must be ToolRegistry or None"),
    (
        lambda: AgentNode("A", "", enable_conversation_logging="yes"),
        "enable_conversation_logging must be bool",
    ),
    (lambda: EnsembleNode("E", []), "agents must be a list of at least 1"),
    (lambda: EnsembleNode("E", A), "agents must be a list of WorkflowNode"),
    (lambda: EnsembleNode("E", [A, "B"]), "agents[1] must be WorkflowNode, got 'B' (str)"),
    (lambda: EnsembleNode("E", [A], strategy="best"), "one of majority_vote, weighted_vote, consensus"),
    (lambda: EnsembleNode("E", [A], strategy="consensus"), "needs a consensus_agent"),
    (lambda: EnsembleNode("E", [A], consensus_agent="J"), "consensus_agent must be WorkflowNode or None"),
    (lambda: EnsembleNode("E", [A], weights=[1, 2]), "2 weights for 1 agents: give one for each"),
    (lambda: EnsembleNode("E", [A], weights=["1"]), "weights[0] must be a finite number"),
    (lambda: EnsembleNode("E", [A], weights=[float("nan")]), "weights[0] must be a finite number"),
    (lambda: EnsembleNode("E", [A], weights=1), "weights must be a list of numbers"),
    (lambda: DebateNode("D", [A], num_rounds=0), "num_rounds must be an integer of at least 1"),
    (lambda: DebateNode("D", [A], judge=3), "judge must be WorkflowNode or None"),
    (lambda: DebateNode("D", []), "debaters must be a list of at least 1"),
    (lambda: ReflectionNode("R", "A"), "agent must be WorkflowNode"),
    (lambda: ReflectionNode("R", A, num_iterations="2"), "num_iterations must be an integer"),
    (lambda: ReflectionNode("R", A, reflection_prompt=3), "reflection_prompt must be str or None"),
    (lambda: ReflectionNode("R", A, refinement_prompt=3), "refinement_prompt must be str or None"),
    (lambda: ReflectionNode("R", A, critic_agent="C"), "critic_agent must be WorkflowNode or None"),
    (lambda: ReflectionNode("R", A, include_history=1), "include_history must be bool"),
    (lambda: RouterNode("R", [A], route), "routes must be a dict"),
    (lambda: RouterNode("R", {"default": 3}, route), "routes['default'] must be WorkflowNode"),
    (lambda: RouterNode("R", {"a": A}, route), "default_route must be one of a, got 'default'"),
    (lambda: RouterNode("R", ROUTES, "default"), "routing_func must be a function"),
    (lambda: create_keyword_router("R", [A], A), "keyword_routes must be a dict"),
    (lambda: create_keyword_router("R", {}, "A"), "default_node must be WorkflowNode"),
    (lambda: Workflow(name=3), "Workflow: name must be a string"),
    (lambda: Workflow(enable_thinking="no"), "enable_thinking must be bool"),
    (lambda: Workflow().add_node("A"), "Workflow.add_node: node must be WorkflowNode"),
    (lambda: Workflow().add_nodes(A), "nodes must be a list of WorkflowNode"),
    (lambda: Workflow().add_node(A).run(3), "input_message must be str, got 3 (int)"),
    (lambda: Workflow().add_node(A).run("q", initial_state=[]), "initial_state must be dict or None"),
    (lambda: Workflow().add_node(A).run_with_context("q"), "context must be Context"),
    (lambda: ConditionalWorkflow().add_node(A, condition=True), "condition must be a function"),
    (lambda: LoopWorkflow(max_iterations=0), "max_iterations must be an integer of at least 1"),
    (lambda: LoopWorkflow().set_loop_condition(None), "condition must be a function"),
    (lambda: AgentGraph(max_steps="5"), "max_steps must be an integer"),
    (lambda: AgentGraph().add_node(3, A), "name must be a string"),
    (lambda: AgentGraph().add_node("a", "A"), "node must be WorkflowNode"),
    (lambda: GRAPH.add_edge("a", "b"), "target 'b' is no node (there are: a); add_node first"),
    (lambda: GRAPH.add_edge("a", "a", condition=3), "condition must be a function"),
    (lambda: GRAPH.add_conditional_edges("a", "b"), "routing_func must be a function"),
    (lambda: GRAPH.set_entry_point("b"), "'b' is no node"),
    (lambda: GRAPH.set_finish_point(["a"]), "name must be a string"),
    (lambda: create_simple_chain(A), "argument 1 must be a (name, node) pair"),
    (lambda: ToolRegistry().register("t", 3, ""), "func must be a function"),
    (lambda: ToolRegistry().register("", print, ""), "name must be one printable line"),
    (lambda: ToolRegistry().register("t", print, 3), "description must be str"),
    (lambda: ToolRegistry().register("t", print, "", []), "parameters must be dict or None"),
    (lambda: ToolRegistry().register("t", print, "", {"properties": []}), "must be dict"),
    (lambda: ToolRegistry().call_tool("t", {}), "there is no tool t; there are: none"),
    (lambda: MathEnvironment(timeout="9"), "timeout must be a finite number above 0, got '9' (str)"),
    (lambda: MathEnvironment(timeout=0), "timeout must be a finite number above 0"),
    (lambda: MathEnvironment().execute(3), "code must be str"),
    (lambda: Message("x", "agent_response"), "message_type must be MessageType, got 'agent_response' (str)"),
    (lambda: Message.from_dict({"content": "x", "type": "poem"}), "'poem' is not a valid MessageType"),
    (lambda: Context().add_message("x"), "message must be Message"),
]


@pytest.mark.parametrize(("call", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_a_wrong_argument_is_refused_by_name(call: Any, said: str) -> None:
    with pytest.raises((TypeError, ValueError)) as refused:
        call()
    assert said in str(refused.value)


def test_a_wrong_argument_ends_the_script_as_its_own_fault(run_script: Any) -> None:
    done = run_script('from workflow import *\nAgentNode(name="A", system_prompt="", max_turns="...")')
    assert done.exit_code == 1
    assert "TypeError: AgentNode: max_turns must be an integer of at least 0, got '...' (str)" in done.stderr


def test_further_keyword_arguments_are_kept_as_config_and_legacy_ones_have_no_effect() -> None:
    node = AgentNode("A", "", ai_client=object(), temperature=0.3)
    assert node.config == {"temperature": 0.3}
    workflow = Workflow("w", object(), object(), "host:1", {"x": 1}, True)
    assert (workflow.name, workflow.nodes) == ("w", [])


def test_nodes_are_abstract_and_classes_exist_once() -> None:
    with pytest.raises(TypeError):
        WorkflowNode("A")  # type: ignore[abstract]
    from troupe_workflow.library.workflow import nodes

    assert nodes.AgentNode is AgentNode
    assert nodes.EnsembleNode is EnsembleNode


def test_running_outside_the_sandbox_says_so() -> None:
    with pytest.raises(RuntimeError, match="run only in the sandbox"):
        Workflow().add_node(A).run("q")


def test_schemas_are_as_in_the_chat_api() -> None:
    registry = ToolRegistry()
    schema = {"type": "object", "properties": {"x": {"type": "number"}}}
    registry.register("double", lambda x: 2 * x, "Doubles.", schema)
    assert registry.get_tool_schemas() == [
        {"type": "function", "function": {"name": "double", "description": "Doubles.", "parameters": schema}}
    ]
    assert registry.list_tools() == ["double"]
    assert registry.call_tool("double", {"x": 4}) == 8
    assert registry.get_tool("none") is None
