"""Workflow nodes of plug-ins: scripts import them in the sandbox, and only what fits there gets there."""

from pathlib import Path

import pytest
from distributions import install
from distributions.node_script import SCRIPT
from troupe_sandbox import AgentCall, Sandbox
from troupe_sandbox.settings import base_interpreter
from troupe_workflow.nodes import NodePluginError, library, source_problems


def test_a_script_imports_a_node_in_process_and_it_goes_with_the_sandbox(examples: Path, tmp_path: Path) -> None:
    sandbox = Sandbox(workflow_slots=1, test_slots=1, work_root=tmp_path, nodes=("longest",))

    def reply(call: AgentCall) -> str:
        return "a long answer" if call.agent == "Long" else "short"

    report = sandbox.run_workflow(SCRIPT, "q", reply)
    assert (report.verdict, report.result) == ("ok", "a long answer"), report.error
    assert list(tmp_path.glob("troupe-sandbox-library-*"))
    del sandbox
    assert not list(tmp_path.glob("troupe-sandbox-library-*"))


def test_without_being_asked_for_a_node_cannot_be_imported(examples: Path) -> None:
    report = Sandbox(workflow_slots=1, test_slots=1).run_workflow(SCRIPT, "q", lambda call: "x")
    assert report.verdict == "runtime_error"
    assert "No module named 'workflow.plugins'" in report.error + report.stderr


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("import numpy\n", "line 1 imports 'numpy'"),
        ("from troupe_contracts import errors\n", "line 1 imports 'troupe_contracts'"),
        ("def f():\n    from . import other\n", "line 2 imports '.'"),
        ("def f(:\n", "is no Python"),
    ],
)
def test_a_node_may_import_the_standard_library_and_the_workflow_library_only(source: str, problem: str) -> None:
    assert source_problems("import json\nfrom workflow.nodes import AgentNode\n") == []
    assert any(problem in found for found in source_problems(source))


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("import numpy\n", "'wrong' of wrong-node .*: line 1 imports 'numpy'"),
        ("", "has no attribute 'Node'"),
        ("Node = 7\n", "is no subclass of WorkflowNode"),
        ("from workflow import WorkflowNode\nclass Node(WorkflowNode): ...\n", "does not define process"),
        ("1 / 0\n", "ZeroDivisionError"),
    ],
)
def test_a_node_that_cannot_work_ends_the_start_and_says_whose_it_is(
    site: Path, tmp_path: Path, source: str, problem: str
) -> None:
    install(site, "wrong-node", {"troupe.nodes": {"wrong": "wrong_node:Node"}}, {"wrong_node": source})
    with pytest.raises(NodePluginError, match=problem), library(["wrong"], tmp_path, base_interpreter()):
        pass


def test_unknown_and_doubled_nodes_are_refused(examples: Path, site: Path, tmp_path: Path) -> None:
    with pytest.raises(NodePluginError, match=r"no workflow node is named 'x'; known: longest \(of troupe-example"):
        Sandbox(nodes=("x",))
    install(site, "rival", {"troupe.nodes": {"longest": "rival:Node"}}, {"rival": ""})
    with pytest.raises(NodePluginError, match=r"is named by .* of rival .* and by .* of troupe-example-longest"):
        Sandbox(nodes=("longest",))
