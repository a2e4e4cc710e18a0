"""One execution: a script in the sandbox, its agents' turns by the executor.

The sandbox asks for turns; this side owns the conversations, enforces the token budget, asks the executor and answers.
A crash or limit of the script keeps every turn it had. What goes wrong on our side raises InfrastructureFaultError and
leaves nothing behind.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TypeAlias

import grpc
from troupe.v1 import (
    common_pb2,
    policy_pb2,
    policy_pb2_grpc,
    sandbox_pb2,
    sandbox_pb2_grpc,
    solver_pb2,
    transcript_pb2,
)

from troupe_orchestrator.rollout.conversations import Conversation, messages_problem
from troupe_orchestrator.rollout.faults import InfrastructureFaultError, fault_of
from troupe_orchestrator.rollout.nursery import Nursery
from troupe_orchestrator.rollout.observer import Observer
from troupe_orchestrator.rollout.timeline import Lane, SpanKind
from troupe_orchestrator.run_config import Budgets
from troupe_orchestrator.tree import seed_of

WorkflowCall: TypeAlias = "grpc.aio.StreamStreamCall[sandbox_pb2.RunWorkflowRequest, sandbox_pb2.RunWorkflowResponse]"

_TURN_SECONDS = 300.0
"""Deadline of one turn: an engine that has not answered by then is a fault."""


@dataclass(frozen=True, slots=True)
class ExecutionRequest:
    """What to run."""

    execution_id: str
    script: str
    question: str
    task_type: common_pb2.TaskType.ValueType
    delivery_instruction: str
    seed: int
    sampling: common_pb2.Sampling
    """For every turn; the seed of each is derived from `seed`, the conversation and the turn."""
    version: common_pb2.PolicyVersion | None
    budgets: Budgets


@dataclass(slots=True)
class ExecutionRecord:
    """What happened, before anything is graded."""

    outcome: sandbox_pb2.WorkflowOutcome
    conversations: list[Conversation]
    tool_runs: list[sandbox_pb2.ToolRun]
    node_events: list[sandbox_pb2.NodeEvent]
    refusals: list[str] = field(default_factory=list)
    """Why agents were refused turns: budget spent, context full."""


async def run_execution(
    request: ExecutionRequest,
    sandbox: sandbox_pb2_grpc.SandboxAsyncStub,
    executor: policy_pb2_grpc.PolicyAsyncStub,
    observer: Observer,
    lane: Lane,
) -> ExecutionRecord:
    """Run one script to its end; each agent's turns are recorded in lanes within `lane`.

    Raises:
        InfrastructureFaultError: the sandbox or the executor failed.
    """
    return await _Execution(request, sandbox, executor, observer, lane).run()


class _Execution:
    def __init__(
        self,
        request: ExecutionRequest,
        sandbox: sandbox_pb2_grpc.SandboxAsyncStub,
        executor: policy_pb2_grpc.PolicyAsyncStub,
        observer: Observer,
        lane: Lane,
    ) -> None:
        self._request = request
        self._sandbox = sandbox
        self._executor = executor
        self._observer = observer
        self._lane = lane
        self._conversations: dict[str, Conversation] = {}
        self._tool_runs: list[sandbox_pb2.ToolRun] = []
        self._node_events: list[sandbox_pb2.NodeEvent] = []
        self._refusals: list[str] = []
        self._spent_tokens = 0
        self._writing = asyncio.Lock()
        self._turns: set[asyncio.Task[None]] = set()

    async def run(self) -> ExecutionRecord:
        call = self._sandbox.RunWorkflow()
        try:
            async with Nursery() as turns:
                outcome = await self._serve(call, turns)
        except grpc.RpcError as error:
            raise fault_of("sandbox", error) from error
        finally:
            call.cancel()
        if outcome is None:
            raise InfrastructureFaultError("sandbox", "the stream ended without an outcome")
        if outcome.verdict == sandbox_pb2.VERDICT_CANCELLED:
            raise InfrastructureFaultError("sandbox", "the execution was cancelled there")
        if outcome.verdict == sandbox_pb2.VERDICT_WALL_LIMIT and outcome.use.waiting_seconds > 0:
            # Whoever was slow, part of the wall was spent waiting for us: that must cost the design nothing.
            raise InfrastructureFaultError(
                "executor",
                f"the wall limit of {self._request.budgets.idle_wall_seconds} s passed, "
                f"{outcome.use.waiting_seconds:.1f} s of it waiting for turns",
            )
        return ExecutionRecord(
            outcome=outcome,
            conversations=list(self._conversations.values()),
            tool_runs=self._tool_runs,
            node_events=self._node_events,
            refusals=self._refusals,
        )

    async def _serve(self, call: WorkflowCall, turns: Nursery) -> sandbox_pb2.WorkflowOutcome | None:
        await call.write(sandbox_pb2.RunWorkflowRequest(start=self._start()))
        outcome = None
        async for response in call:
            match response.WhichOneof("message"):
                case "agent_call":
                    turn = turns.create_task(self._answer(call, response.agent_call))
                    self._turns.add(turn)
                    turn.add_done_callback(self._turns.discard)
                case "tool_run":
                    self._tool_runs.append(response.tool_run)
                    self._observer.tool_run(response.tool_run)
                case "node_event":
                    self._node_events.append(response.node_event)
                    self._observer.node_event(response.node_event)
                case "outcome":
                    outcome = response.outcome
        for turn in self._turns:
            # The script ended without waiting for it: nobody will read this turn.
            turn.cancel()
        return outcome

    def _start(self) -> sandbox_pb2.StartWorkflow:
        budgets = self._request.budgets
        return sandbox_pb2.StartWorkflow(
            execution_id=self._request.execution_id,
            script=self._request.script,
            question=self._request.question,
            task_type=self._request.task_type,
            delivery_instruction=self._request.delivery_instruction,
            limits=sandbox_pb2.Limits(
                cpu_seconds=budgets.cpu_seconds,
                memory_bytes=budgets.memory_bytes,
                wall_seconds=budgets.idle_wall_seconds,
            ),
            tool_limits=sandbox_pb2.Limits(cpu_seconds=budgets.tool_cpu_seconds, memory_bytes=budgets.memory_bytes),
            max_agent_calls=budgets.agent_calls,
            seed=self._request.seed,
        )

    async def _answer(self, call: WorkflowCall, agent_call: sandbox_pb2.AgentCall) -> None:
        reply = sandbox_pb2.AgentReply(call_id=agent_call.call_id)
        conversation = self._conversations.get(agent_call.conversation_id)
        if conversation is None:
            conversation = Conversation(agent_call.conversation_id, agent_call.agent)
            self._conversations[agent_call.conversation_id] = conversation
        if conversation.busy:
            reply.refusal = f"conversation {agent_call.conversation_id} has a turn under way already"
        elif self._spent_tokens >= self._request.budgets.tokens:
            reply.refusal = f"the execution's budget of {self._request.budgets.tokens} tokens is spent"
        elif problem := messages_problem(conversation, agent_call.messages):
            reply.refusal = problem
        else:
            conversation.busy = True
            with self._lane.within(agent_call.conversation_id).span(SpanKind.TURN, agent_call.agent):
                response = await self._generate(conversation, agent_call)
            conversation.busy = False
            if response.stop_reason == transcript_pb2.STOP_REASON_CONTEXT_OVERFLOW:
                reply.refusal = "the conversation no longer fits the model's context"
            else:
                conversation.append(response.appended)
                reply.text = response.text
                self._observer.turn(
                    solver_pb2.AgentTurn(
                        conversation_id=agent_call.conversation_id,
                        agent=agent_call.agent,
                        messages=agent_call.messages,
                        reply=response.text,
                        generated_tokens=response.generated_tokens,
                    )
                )
        if reply.refusal:
            self._refusals.append(reply.refusal)
        async with self._writing:
            try:
                await call.write(sandbox_pb2.RunWorkflowRequest(agent_reply=reply))
            except (grpc.RpcError, asyncio.InvalidStateError):
                # The script has ended without waiting for this turn; the reading side knows how.
                return

    async def _generate(
        self, conversation: Conversation, agent_call: sandbox_pb2.AgentCall
    ) -> policy_pb2.GenerateResponse:
        sampling = common_pb2.Sampling()
        sampling.CopyFrom(self._request.sampling)
        turn = len(conversation.transcript.messages)
        sampling.seed = seed_of(self._request.seed, f"{agent_call.conversation_id}\x1f{turn}")
        left = self._request.budgets.tokens - self._spent_tokens
        sampling.max_tokens = min(sampling.max_tokens, left)
        # Reserved before the call, so that concurrent members cannot overdraw the budget together.
        self._spent_tokens += sampling.max_tokens
        request = policy_pb2.GenerateRequest(
            conversation_id=f"{self._request.execution_id}/{agent_call.conversation_id}",
            transcript=conversation.transcript,
            messages=agent_call.messages,
            sampling=sampling,
            version=self._request.version,
        )
        try:
            response = await self._executor.Generate(request, timeout=_TURN_SECONDS)
        except grpc.RpcError as error:
            raise fault_of("executor", error) from error
        self._spent_tokens += response.generated_tokens - sampling.max_tokens
        return response
