"""The two sample scripts of the paper's appendix run, completed where the published page cuts them."""

from typing import Any

# "math_ensemble_judge": three solvers, and a judge who always decides.
ENSEMBLE_JUDGE = r"""
from workflow import AgentNode, Workflow, ToolRegistry
from workflow.nodes import EnsembleNode

# No tools needed - pure reasoning
tool_registry = ToolRegistry()

# Create three math solvers with different approaches
solver1 = AgentNode(
    name="AlgebraicSolver",
    system_prompt=(
        "You are a mathematician who solves problems by algebra. "
        "Put your final answer in \\boxed{} format."
    ),
    tool_registry=tool_registry,
    max_turns=1
)
solver2 = AgentNode(
    name="CombinatorialSolver",
    system_prompt="You are a mathematician who solves problems by counting.",
    tool_registry=tool_registry,
    max_turns=1
)
solver3 = AgentNode(
    name="CaseAnalyzer",
    system_prompt="You are a mathematician who solves problems by cases.",
    tool_registry=tool_registry,
    max_turns=1
)
judge = AgentNode(
    name="MathJudge",
    system_prompt="You are a senior mathematician. Select the correct answer, in \\boxed{} format.",
    tool_registry=tool_registry,
    max_turns=1
)
ensemble = EnsembleNode(
    name="MathEnsemble",
    agents=[solver1, solver2, solver3],
    strategy="consensus",
    consensus_agent=judge
)
workflow = Workflow(name="math_ensemble_judge")
workflow.add_node(ensemble)

print("================================================")
print("FINAL ANSWER:")
result = workflow.run(question)
print(result.content)
print("================================================")
"""

# A solver and a unit-test agent in reflection, with a code interpreter that the script brings itself.
CODE_REFLECTION = r'''
from workflow import AgentNode, Workflow, ToolRegistry
from workflow.nodes import ReflectionNode
import subprocess

# Set up code interpreter tool
tool_registry = ToolRegistry()

def execute_code(code: str) -> str:
    """Execute Python code and return stdout/stderr."""
    try:
        result = subprocess.run(
            ["python", "-c", code],
            capture_output=True,
            text=True,
            timeout=10
        )
        return result.stdout if result.returncode == 0 else "Error: " + result.stderr
    except subprocess.TimeoutExpired:
        return "Error: timed out"

tool_registry.register(
    name="execute_code",
    func=execute_code,
    description="Execute Python code and return stdout/stderr.",
    parameters={
        "type": "object",
        "properties": {"code": {"type": "string", "description": "Python code to execute"}},
        "required": ["code"]
    }
)

code_solver = AgentNode(
    name="CodeSolver",
    system_prompt="You write Python that reads stdin and prints the answer. Wrap it in <solution> tags.",
    tool_registry=tool_registry,
    max_turns=5
)
unit_tester = AgentNode(
    name="UnitTestAgent",
    system_prompt="You test solutions thoroughly with the execute_code tool and report what fails.",
    tool_registry=tool_registry,
    max_turns=5
)
reflection = ReflectionNode(
    name="CodeReflection",
    agent=code_solver,
    critic_agent=unit_tester,
    num_iterations=2
)
workflow = Workflow(name="code_reflection")
workflow.add_node(reflection)
result = workflow.run(question)
print(result.content)
'''

GRID = "Place digits in a 2x3 grid so that the rows sum to 999 and the columns to 99. In how many ways?"
EVERSION = "Count the eversions until the array no longer changes."
FIRST_TRY = "<delivery>counts larger elements</delivery>\n<solution>\nprint(1)\n</solution>"
SECOND_TRY = "<delivery>follows the chain of maxima</delivery>\n<solution>\n```python\nprint(2)\n```\n</solution>"
RUN_IT = '<tool_call>{"name": "execute_code", "arguments": {"code": "print(6 * 7)"}}</tool_call>'


def test_the_ensemble_with_a_judge_runs_as_published(run_script: Any) -> None:
    done = run_script(
        ENSEMBLE_JUDGE,
        start={"question": GRID, "delivery_instruction": "Deliver."},
        AlgebraicSolver=r"<delivery>a+b+c = 8 gives 45</delivery> \boxed{45}",
        CombinatorialSolver=r"<delivery>C(10,2)</delivery> FINAL ANSWER: \boxed{45}",
        CaseAnalyzer=r"Too many cases. \boxed{54}",
        MathJudge=r"<delivery>45</delivery> \boxed{45}",
    )
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.results == [r"<delivery>45</delivery> \boxed{45}"]
    assert done.result["result_type"] == "agent_response"
    assert done.result["own_question"] is False
    assert done.stdout.splitlines()[1:3] == ["FINAL ANSWER:", done.results[0]]
    assert sorted(done.entered()) == [
        ("AlgebraicSolver", "AgentNode"),
        ("CaseAnalyzer", "AgentNode"),
        ("CombinatorialSolver", "AgentNode"),
        ("MathEnsemble", "EnsembleNode"),
        ("MathJudge", "AgentNode"),
    ]
    assert done.asked("AlgebraicSolver") == [GRID]
    assert done.asked("MathJudge") == [
        f"{GRID}\n"
        "AlgebraicSolver: a+b+c = 8 gives 45\n\\boxed{45}\n"
        "CombinatorialSolver: C(10,2)\n\\boxed{45}\n"
        "CaseAnalyzer: Too many cases. \\boxed{54}\n"
        "Compare these answers and give the right answer."
    ]


def test_the_code_reflection_runs_as_published(run_script: Any, python_on_path: dict[str, str]) -> None:
    done = run_script(
        CODE_REFLECTION,
        env=python_on_path,
        start={"question": EVERSION, "task_type": "code"},
        CodeSolver=[FIRST_TRY, RUN_IT, SECOND_TRY],
        UnitTestAgent=[
            "1. Logical flaw: duplicates fail.\nVERDICT: INCORRECT",
            "All tests pass.\nVERDICT: CORRECT",
        ],
    )
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.results == [SECOND_TRY]
    assert [call["agent"] for call in done.calls] == [
        "CodeSolver",
        "UnitTestAgent",
        "CodeSolver",
        "CodeSolver",
        "UnitTestAgent",
    ]
    # The script's own subprocess ran, inside the script's process tree.
    assert done.calls[3]["messages"] == [{"role": "tool", "content": "42\n"}]
    assert done.calls[3]["tool_run_ids"] == []
    assert done.of_type("tool_call") == []
    first_review = done.asked("UnitTestAgent")[0]
    assert first_review.startswith(
        f"{EVERSION}\n\nAnswer:\ncounts larger elements\n<solution>\nprint(1)\n</solution>\n"
    )
    assert "Review:\n1. Logical flaw: duplicates fail." in done.asked("CodeSolver")[1]
    assert [kind for _, kind in done.entered()] == ["ReflectionNode", *["AgentNode"] * 4]
