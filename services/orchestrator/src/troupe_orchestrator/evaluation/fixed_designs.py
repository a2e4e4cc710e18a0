"""Modes without a designer: in its place a fixed script for every problem. One agent, a vote of several, or any workflow."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import cast

from troupe.v1 import designer_pb2, designer_pb2_grpc, evaluation_pb2

_SINGLE_AGENT = """from workflow import AgentNode, Workflow
flow = Workflow()
flow.add_node(AgentNode("Solver", "Solve the problem step by step."))
flow.run(question)
"""
_MAJORITY = """from workflow import AgentNode, Workflow
from workflow.nodes import EnsembleNode
flow = Workflow()
agents = [AgentNode(f"Solver{{number}}", "Solve the problem step by step.") for number in range({votes})]
flow.add_node(EnsembleNode("Majority", agents, strategy="majority_vote"))
flow.run(question)
"""


def fixed_script(request: evaluation_pb2.CreateEvalJobRequest) -> str | None:
    """The script of a job's mode; None where a designer writes one for each item."""
    match request.mode:
        case evaluation_pb2.EVAL_MODE_SINGLE_AGENT:
            return _SINGLE_AGENT
        case evaluation_pb2.EVAL_MODE_MAJORITY:
            return _MAJORITY.format(votes=request.votes)
        case evaluation_pb2.EVAL_MODE_FIXED_WORKFLOW:
            return request.script
        case _:
            return None


class FixedDesigner:
    """Answers as a Designer service, with one script and without a model."""

    def __init__(self, script: str) -> None:
        self._script = script

    async def ProposeDesigns(
        self, request: designer_pb2.ProposeDesignsRequest, **_: object
    ) -> AsyncIterator[designer_pb2.ProposeDesignsResponse]:
        """One design for each id."""
        for design_id in request.design_ids:
            yield designer_pb2.ProposeDesignsResponse(
                design=designer_pb2.Design(design_id=design_id, script=self._script)
            )


def fixed_designer(script: str) -> designer_pb2_grpc.DesignerAsyncStub:
    """In the form in which a rollout asks for designs."""
    return cast("designer_pb2_grpc.DesignerAsyncStub", FixedDesigner(script))
