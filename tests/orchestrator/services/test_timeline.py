"""The rollout is a pipeline: executions run while designs are still sampled, members of an ensemble side by side."""

import asyncio
import json
from typing import Any

import pytest
from orchestrated.models import GUESS, right_unless_guessed
from orchestrated.world import Backends, math_task
from troupe.v1 import common_pb2, policy_pb2

pytestmark = pytest.mark.asyncio(loop_scope="session")

ENSEMBLE = """
from workflow import AgentNode, EnsembleNode, Workflow
flow = Workflow()
flow.add_node(EnsembleNode("Vote", [AgentNode("First", "Solve it."), AgentNode("Second", "Solve it.")]))
flow.run(question)
"""


async def test_executions_begin_before_the_last_design_and_members_of_an_ensemble_overlap(
    open_world, stand_ins: Backends
) -> None:
    turn_begun = asyncio.Event()
    members = asyncio.Barrier(2)

    async def reply(request: policy_pb2.GenerateRequest) -> str:
        turn_begun.set()
        if any("Solve it." in m.content for m in request.messages if m.role == common_pb2.MESSAGE_ROLE_SYSTEM):
            async with asyncio.timeout(20):
                await members.wait()
        return right_unless_guessed(request)

    stand_ins.policy.reply = reply
    stand_ins.designer.before_next = lambda: asyncio.wait_for(turn_begun.wait(), 20)
    stand_ins.designer.otherwise = [ENSEMBLE, GUESS]
    async with open_world(learner=True) as world:
        await world.run(
            world.config([math_task("only")], steps=1, rollout={"tasks_per_step": 1, "designs": 2, "executions": 1})
        )
        run = await world.get_run()
        assert run.committed_steps == 1
        # Named by the token of who wrote it, the first that held this store.
        spans = _spans(world.folder / "data" / "runs" / "run" / "steps" / "000001" / "timeline-1.json")
    first_turn, second_turn = (span for span in spans if span["name"] in ("First", "Second"))
    (second_design,) = (span for span in spans if span["cat"] == "design" and span["lane"] == "design 2")
    assert min(first_turn["ts"], second_turn["ts"]) < second_design["ts"] + second_design["dur"]
    assert first_turn["ts"] < second_turn["ts"] + second_turn["dur"]
    assert second_turn["ts"] < first_turn["ts"] + first_turn["dur"]
    assert first_turn["lane"] != second_turn["lane"]
    assert {span["cat"] for span in spans} == {"design", "queue", "execution", "turn", "grading"}


def _spans(file: Any) -> list[dict[str, Any]]:
    """Spans with the names of their lanes, as a viewer of the trace event format reads them."""
    events = json.loads(file.read_text())["traceEvents"]
    lanes = {(event["pid"], event["tid"]): event["args"]["name"] for event in events if event["name"] == "thread_name"}
    return [{**event, "lane": lanes[event["pid"], event["tid"]]} for event in events if event["ph"] == "X"]
