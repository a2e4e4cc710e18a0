"""All kinds in a run through the real sandbox: the config names format, grader, terms and estimator; the script a node."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from distributions.node_script import SCRIPT
from orchestrated.models import SINGLE
from orchestrated.world import backends, world
from troupe.v1 import common_pb2, policy_pb2, training_pb2


@pytest.fixture
def sandbox_with_node(examples: Path, tmp_path: Path) -> Iterator[str]:
    """Target of a real sandbox whose scripts can import the example's node."""
    ready = tmp_path / "ready.json"
    command = [sys.executable, "-m", "troupe_sandbox", "--listen", "127.0.0.1:0", "--ready-file", str(ready)]
    command += ["--workflow-slots", "4", "--test-slots", "1", "--work-dir", str(tmp_path), "--die-with-parent"]
    process = subprocess.Popen([*command, "--nodes", "longest", "--drain-seconds", "1"])
    give_up = time.monotonic() + 60
    while not ready.exists():
        assert process.poll() is None, "the sandbox did not start"
        assert time.monotonic() < give_up, "the sandbox does not serve"
        time.sleep(0.02)
    yield json.loads(ready.read_text())["target"]
    process.terminate()
    process.wait(30)
    assert not list(tmp_path.glob("troupe-sandbox-*"))


def long_or_short(request: policy_pb2.GenerateRequest) -> str:
    """41.5 in many words from the agent that is told to be long."""
    words = "because " * 40 if any("Be long." in message.content for message in request.messages) else ""
    return rf"{words}<delivery>\boxed{{41.5}}</delivery>"


async def test_a_run_uses_format_grader_terms_estimator_and_node_by_their_names(
    examples: Path, tmp_path: Path, sandbox_with_node: str
) -> None:
    rows = [{"prompt": f"Roughly 6 * 7? ({number})", "gold": gold} for number, gold in enumerate(["40..43", "1..2"])]
    async with backends() as parts, world(tmp_path / "world", parts, sandbox_with_node, learner=True) as opened:
        parts.designer.otherwise = [SCRIPT, SINGLE]
        parts.policy.reply = long_or_short
        config = opened.config(
            rows,
            dataset={"train": str(tmp_path / "world" / "train.jsonl"), "format": "pairs", "grader": "interval"},
            steps=1,
            stages=[{"train": "both", "steps": 1}],
            rewards={"executor": {"terms": {"brevity": 0.5}}, "designer": {"terms": {"brevity": 0.25}}},
            credit={"estimator": "sign", "options": {"scale": 3.0}},
        )
        events = await opened.run(config)
        assert events[-1].state_changed.state == training_pb2.RUN_STATE_SUCCEEDED, events
        (trees,) = (tmp_path / "world" / "data").rglob("trees-*.parquet")
        nodes = pq.read_table(trees).to_pylist()
        executions = [node["id"] for node in nodes if node["kind"] == "execution"]
        traces = [
            await opened.training.GetExecution(training_pb2.GetExecutionRequest(execution_id=execution))
            for execution in executions
        ]
    assert sorted(trace.executor_advantage for trace in traces) == [-3.0, 0.0, 0.0, 3.0]
    for trace in traces:
        success = any(term.name == "success" and term.value for term in trace.reward_terms)
        assert success == ("(0)" in trace.question)
        brevity = {term.role: term for term in trace.reward_terms if term.name == "brevity"}
        assert brevity[common_pb2.ROLE_EXECUTOR].weight == 0.5
        assert brevity[common_pb2.ROLE_DESIGNER].weight == 0.25
        assert all((term.value > 0) == success for term in brevity.values())
        asked = [conversation.agent for conversation in trace.conversations if conversation.agent != "designer"]
        assert asked == (["Short", "Long"] if "LongestNode" in trace.script else ["Solver"])
