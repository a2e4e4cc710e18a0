"""Solving one question: what is streamed, and what is refused."""

import pytest
from orchestrated.models import SINGLE, question_of
from orchestrated.world import World, refused
from troupe.v1 import common_pb2, designer_pb2, policy_pb2, solver_pb2
from troupe_contracts.errors import InvalidArgument, Unavailable

pytestmark = pytest.mark.asyncio(loop_scope="session")

TOOL = r"""
from workflow import AgentNode, ToolRegistry, Workflow
from utils.environments.math_env import MathEnvironment
tools = ToolRegistry()
tools.register("python", MathEnvironment().execute, "Runs python.", {"type": "object", "properties": {"code": {}}})
Workflow().add_node(AgentNode("Solver", "Use python.", tool_registry=tools)).run(question)
"""


async def solve(world: World, question: str, **fields: object) -> list[solver_pb2.SolveEvent]:
    request = solver_pb2.SolveRequest(question=question, **fields)  # type: ignore[arg-type]
    return [event async for event in world.solver.Solve(request, timeout=60)]


def calculates(request: policy_pb2.GenerateRequest) -> str:
    return "```python\nprint(6 * 7)\n```" if "6 * 7" in question_of(request) else r"It is \boxed{42}."


async def test_solving_streams_design_turns_tool_runs_and_the_answer_in_order(shared: World) -> None:
    shared.backends.designer.scripts["6 * 7?"] = [TOOL]
    shared.backends.policy.reply = lambda request: (
        r"It is \boxed{42}." if request.transcript.messages else calculates(request)
    )
    events = await solve(shared, "6 * 7?")
    kinds = [event.WhichOneof("event") for event in events]
    told = [kind for kind in kinds if kind != "node_event"]
    assert told == ["design", "turn", "tool_run", "turn", "answer"]
    assert kinds.count("node_event") == 2
    assert events[-1].answer == solver_pb2.SolveAnswer(answer="42", result=r"It is \boxed{42}.", status="ok")
    tool_run = next(event.tool_run for event in events if event.HasField("tool_run"))
    assert tool_run.output.strip() == "42"
    assert [event.turn.agent for event in events if event.HasField("turn")] == ["Solver", "Solver"]


@pytest.mark.parametrize(
    ("question", "said"), [("", "is empty"), (" \n\t", "is empty"), ("x" * 100_001, "100001 characters")]
)
async def test_a_question_that_is_empty_or_too_long_is_refused_by_field(
    shared: World, question: str, said: str
) -> None:
    with refused("INVALID_ARGUMENT", said, field="question"):
        await solve(shared, question)


async def test_a_task_type_that_does_not_exist_is_refused_by_field(shared: World) -> None:
    with refused("INVALID_ARGUMENT", field="task_type"):
        await solve(shared, "6 * 7?", task_type=99)


async def test_a_design_that_cannot_be_run_is_an_answer_that_says_why(shared: World) -> None:
    problem = designer_pb2.ScriptProblem(
        kind=designer_pb2.SCRIPT_PROBLEM_KIND_SYNTAX, message="line 1: '(' was never closed", line=1
    )
    shared.backends.designer.scripts["broken?"] = [designer_pb2.Design(text="f(", script="f(", problems=[problem])]
    design, answer = await solve(shared, "broken?")
    assert design.design.problems[0].line == 1
    assert answer.answer.status == "policy_fault"
    assert "never closed" in answer.answer.reason


async def test_an_engine_that_is_down_ends_solving_with_unavailable_naming_it(shared: World) -> None:
    def down(request: policy_pb2.GenerateRequest) -> str:
        raise Unavailable("the engine is gone")

    shared.backends.policy.reply = down
    shared.backends.designer.scripts["6 * 7?"] = [SINGLE]
    with refused("UNAVAILABLE", "executor", "the engine is gone"):
        await solve(shared, "6 * 7?")


async def test_what_the_executor_refuses_is_passed_on_and_not_asked_again(shared: World) -> None:
    asked = 0

    def refuses(request: policy_pb2.GenerateRequest) -> str:
        nonlocal asked
        asked += 1
        raise InvalidArgument("sampling.top_p", "is 7, must be in (0, 1]")

    shared.backends.policy.reply = refuses
    shared.backends.designer.scripts["6 * 7?"] = [SINGLE]
    with refused("INVALID_ARGUMENT", "sampling.top_p"):
        await solve(shared, "6 * 7?", sampling=common_pb2.Sampling(temperature=1.0))
    assert asked == 1
