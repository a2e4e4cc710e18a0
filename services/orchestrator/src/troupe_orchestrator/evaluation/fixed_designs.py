"""Modes without a designer: in its place a script that is known before. One agent, a vote of several, any workflow, or what
a designer wrote for another job.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from typing import Final, cast

from troupe.v1 import designer_pb2, designer_pb2_grpc, evaluation_pb2

from troupe_orchestrator.fleet import PolicyFleet, without_engine

FixedDesigns = Callable[[str, int, int], designer_pb2.Design]
"""The design of an item, without an id: of a problem, its sample, and the item's number in the job, from 0."""

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
_ASKS_DESIGNER: Final = (evaluation_pb2.EVAL_MODE_UNSPECIFIED, evaluation_pb2.EVAL_MODE_SYSTEM)


def asks_designer(request: evaluation_pb2.CreateEvalJobRequest) -> bool:
    """Whether a designer writes a script for each item of a job."""
    return request.mode in _ASKS_DESIGNER


def same_for_all(request: evaluation_pb2.CreateEvalJobRequest) -> FixedDesigns:
    """The design of a mode with one script for all items."""
    script = _SINGLE_AGENT if request.mode == evaluation_pb2.EVAL_MODE_SINGLE_AGENT else request.script
    return lambda task_id, sample, number: designer_pb2.Design(script=script)


def voting(mean: float) -> FixedDesigns:
    """The designs of mode MAJORITY.

    Args:
        mean: votes of an item, at least 1. All items together have it: with 3.25, three have 3 and the fourth has 4.
    """

    def design(task_id: str, sample: int, number: int) -> designer_pb2.Design:
        votes = math.floor(mean * (number + 1)) - math.floor(mean * number)
        return designer_pb2.Design(script=_MAJORITY.format(votes=votes) if votes > 1 else _SINGLE_AGENT)

    return design


class FixedDesigner:
    """Answers as a Designer service, with one design and without a model."""

    def __init__(self, design: designer_pb2.Design) -> None:
        self._design = design

    async def ProposeDesigns(
        self, request: designer_pb2.ProposeDesignsRequest, **_: object
    ) -> AsyncIterator[designer_pb2.ProposeDesignsResponse]:
        """The design under each id."""
        for design_id in request.design_ids:
            response = designer_pb2.ProposeDesignsResponse(design=self._design)
            response.design.design_id = design_id
            yield response


def designer_of(design: designer_pb2.Design) -> PolicyFleet:
    """In the form in which a rollout asks for designs."""
    return without_engine(cast("designer_pb2_grpc.DesignerAsyncStub", FixedDesigner(design)))
