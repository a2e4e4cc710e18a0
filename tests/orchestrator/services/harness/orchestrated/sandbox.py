"""A stand-in for the sandbox: runs no script, but asks for turns as one would, and remembers what it was asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator

from troupe.v1 import common_pb2, sandbox_pb2, sandbox_pb2_grpc
from troupe_contracts.calls import Context

TURNS = 3
"""Of each script: all but the last in one conversation."""


class StandInSandbox(sandbox_pb2_grpc.SandboxServicer):
    """Every script asks for three turns and gives the last reply as its result."""

    def __init__(self) -> None:
        self.starts: list[sandbox_pb2.StartWorkflow] = []
        self.tests: list[sandbox_pb2.RunTestsRequest] = []
        self.replies: list[sandbox_pb2.AgentReply] = []

    def begin_again(self) -> None:
        """Forget what was asked."""
        self.starts.clear()
        self.tests.clear()
        self.replies.clear()

    async def GetIsolation(
        self, request: sandbox_pb2.GetIsolationRequest, context: Context
    ) -> sandbox_pb2.IsolationReport:
        return sandbox_pb2.IsolationReport(profile="stand-in", workflow_slots=4, test_slots=2)

    async def RunWorkflow(
        self, requests: AsyncIterator[sandbox_pb2.RunWorkflowRequest], context: Context
    ) -> AsyncIterator[sandbox_pb2.RunWorkflowResponse]:
        start = (await anext(requests)).start
        self.starts.append(start)
        yield sandbox_pb2.RunWorkflowResponse(started=sandbox_pb2.WorkflowStarted(profile="stand-in"))
        result = ""
        calls = min(TURNS, start.max_agent_calls)
        for call_id in range(1, calls + 1):
            yield sandbox_pb2.RunWorkflowResponse(agent_call=_call(start, call_id, last=call_id == calls))
            request = await anext(requests, None)
            if request is None:
                return  # nobody waits for the outcome any more
            reply = request.agent_reply
            self.replies.append(reply)
            result = reply.text or result
        outcome = sandbox_pb2.WorkflowOutcome(
            verdict=sandbox_pb2.VERDICT_OK,
            result=result,
            has_result=bool(result),
            agent_calls=calls,
            profile="stand-in",
        )
        yield sandbox_pb2.RunWorkflowResponse(outcome=outcome)

    async def RunTests(
        self, request: sandbox_pb2.RunTestsRequest, context: Context
    ) -> AsyncIterator[sandbox_pb2.RunTestsResponse]:
        self.tests.append(request)
        passed = sandbox_pb2.TestsOutcome(passed=True, cases_passed=1, cases_run=1, cases_total=1, profile="stand-in")
        yield sandbox_pb2.RunTestsResponse(outcome=passed)


def _call(start: sandbox_pb2.StartWorkflow, call_id: int, last: bool) -> sandbox_pb2.AgentCall:
    messages = []
    conversation = "last" if last else "first"
    if call_id == 1 or last:
        prompt = ("Guess." if "Guess." in start.script else "Solve it.") + start.delivery_instruction
        messages.append(common_pb2.ChatMessage(role=common_pb2.MESSAGE_ROLE_SYSTEM, content=prompt))
    messages.append(common_pb2.ChatMessage(role=common_pb2.MESSAGE_ROLE_USER, content=start.question))
    return sandbox_pb2.AgentCall(call_id=call_id, conversation_id=conversation, agent="Solver", messages=messages)
