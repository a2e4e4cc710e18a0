"""The baseline of one agent: in place of the designer a fixed script that asks one agent once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import cast

from troupe.v1 import designer_pb2, designer_pb2_grpc

SCRIPT = """from workflow import AgentNode, Workflow
flow = Workflow()
flow.add_node(AgentNode("Solver", "Solve the problem step by step."))
flow.run(question)
"""


class SingleAgentDesigner:
    """Answers as a Designer service, with the same script for every task and without a model."""

    async def ProposeDesigns(
        self, request: designer_pb2.ProposeDesignsRequest, **_: object
    ) -> AsyncIterator[designer_pb2.ProposeDesignsResponse]:
        """One design for each id."""
        for design_id in request.design_ids:
            design = designer_pb2.Design(design_id=design_id, script=SCRIPT, declared_pattern="single")
            yield designer_pb2.ProposeDesignsResponse(design=design)


def single_agent_designer() -> designer_pb2_grpc.DesignerAsyncStub:
    """In the form in which a rollout asks for designs."""
    return cast("designer_pb2_grpc.DesignerAsyncStub", SingleAgentDesigner())
