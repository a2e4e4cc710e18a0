"""Why a script cannot be run."""

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from troupe_designer.extraction import extract_script
from troupe_designer.prompt import BUILT_IN
from troupe_designer.validation import ProblemKind, find_problems

LIMIT = 40_000


@pytest.mark.parametrize(
    "script",
    [
        "from workflow import AgentNode",
        "import workflow",
        "import os, workflow.nodes as nodes",
        "from workflow.nodes import AgentNode",
        "def build():\n    from workflow import Workflow\n    return Workflow()",
        'from workflow import AgentNode\nprompt = "\\d \\boxed{}"',
    ],
)
def test_a_script_that_imports_the_library_has_no_problems(script):
    assert find_problems(script, LIMIT) == ()


@pytest.mark.parametrize(
    ("script", "kind", "line"),
    [
        ("", ProblemKind.NO_SCRIPT, 0),
        (" \n\t", ProblemKind.NO_SCRIPT, 0),
        ("from workflow import AgentNode\nx = = 1", ProblemKind.SYNTAX, 2),
        ("from workflow import (AgentNode", ProblemKind.SYNTAX, 1),
        ("x = '\0'", ProblemKind.SYNTAX, 0),
        ("(" * 9000, ProblemKind.SYNTAX, None),
        ("-" * 30_000 + "1", ProblemKind.SYNTAX, None),
        ("a" + ".a" * 15_000, ProblemKind.SYNTAX, None),
        ("print('from workflow import AgentNode')", ProblemKind.NO_WORKFLOW, 0),
        ("import workflows", ProblemKind.NO_WORKFLOW, 0),
        ("from . import workflow", ProblemKind.NO_WORKFLOW, 0),
        ("import workflow\n" + "#" * LIMIT, ProblemKind.TOO_LONG, 0),
    ],
)
def test_a_bad_script_is_told_by_kind_and_line(script, kind, line):
    (problem,) = find_problems(script, LIMIT)
    assert problem.kind is kind
    assert problem.message
    if line is not None:
        assert problem.line == line


def test_a_huge_script_is_refused_without_being_parsed():
    (problem,) = find_problems("(" * 50_000_000, LIMIT)
    assert problem.kind is ProblemKind.TOO_LONG


@given(st.text(max_size=300))
def test_any_text_gets_a_verdict(text):
    problems = find_problems(text, LIMIT)
    if not problems:
        ast.parse(text)


def test_the_example_in_the_default_prompt_is_a_valid_script():
    prompt = (BUILT_IN / "default" / "system.txt").read_text()
    script = extract_script(prompt[prompt.index("# Example") :])
    assert script.startswith("from workflow import")
    assert find_problems(script, LIMIT) == ()
