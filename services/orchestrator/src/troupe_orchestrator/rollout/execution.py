"""One execution: a script in the sandbox, its agents' turns by the executor.

The sandbox asks for turns; this side owns the conversations, enforces the budgets, asks the executor and answers. A crash
or limit of the script keeps every turn it had. What goes wrong on our side raises InfrastructureFaultError and leaves
nothing behind. A turn that a replica refuses for now is asked for again: nothing was generated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

import grpc
from troupe.v1 import common_pb2, policy_pb2, sandbox_pb2, transcript_pb2
from troupe_contracts.scripts import reply_refusal

from troupe_orchestrator.fleet import TURN_SECONDS, PolicyFleet, Replica
from troupe_orchestrator.rollout.admission import ExecutionPlace
from troupe_orchestrator.rollout.budget import WALL_PER_CPU_SECOND, Account, in_order, place_of, settled
from troupe_orchestrator.rollout.conversations import Conversation, messages_problem
from troupe_orchestrator.rollout.faults import InfrastructureFaultError, Patience, fault_of
from troupe_orchestrator.rollout.nursery import Nursery
from troupe_orchestrator.rollout.observer import Observer
from troupe_orchestrator.rollout.timeline import Lane, SpanKind
from troupe_orchestrator.rotation import NoReplicasError
from troupe_orchestrator.run_config import Budgets
from troupe_orchestrator.tree import seed_of

WorkflowCall: TypeAlias = "grpc.aio.StreamStreamCall[sandbox_pb2.RunWorkflowRequest, sandbox_pb2.RunWorkflowResponse]"

_WALL_PER_OWN_SECOND = 4
"""The sandbox ends an execution after so many times the wall clock that its script may take by itself: what hangs must end.
Whether it took too long by itself is asked of each that ended, however it did."""
_GONE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})


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
    turn_seconds: float = TURN_SECONDS
    """Deadline of one turn: an engine that has not answered by then is a fault."""


@dataclass(frozen=True, slots=True)
class ExecutionRecord:
    """What happened, before anything is graded. All in the order of the script, whatever was faster."""

    outcome: sandbox_pb2.WorkflowOutcome
    conversations: list[Conversation]
    tool_runs: list[sandbox_pb2.ToolRun]
    node_events: list[sandbox_pb2.NodeEvent]
    refusals: list[str] = field(default_factory=list)
    """Why agents were refused turns: a conversation's turns spent, context full."""
    overdrawn: str = ""
    """Why it was ended before it ended by itself; then it has no result."""


class _OverdrawnError(Exception):
    """The execution has spent more than it may."""

    def __init__(self, reason: str, conversation_id: str) -> None:
        self.reason = reason
        self.conversation_id = conversation_id
        super().__init__(reason)


async def run_execution(
    request: ExecutionRequest, place: ExecutionPlace, executors: PolicyFleet, observer: Observer, lane: Lane
) -> ExecutionRecord:
    """Run one script to its end; each agent's turns are recorded in lanes within `lane`.

    Raises:
        InfrastructureFaultError: the sandbox or the executor failed.
    """
    return await _Execution(request, place, executors, observer, lane).run()


class _Execution:
    def __init__(
        self,
        request: ExecutionRequest,
        place: ExecutionPlace,
        executors: PolicyFleet,
        observer: Observer,
        lane: Lane,
    ) -> None:
        self._request = request
        self._sandbox = place.sandbox.stub
        self._replica = place.executor
        self._executors = executors
        self._observer = observer
        self._lane = lane
        self._conversations: dict[str, Conversation] = {}
        self._tool_runs: list[sandbox_pb2.ToolRun] = []
        self._node_events: list[sandbox_pb2.NodeEvent] = []
        self._account = Account(request.budgets)
        self._writing = asyncio.Lock()
        self._turns: set[asyncio.Task[None]] = set()

    async def run(self) -> ExecutionRecord:
        call = self._sandbox.RunWorkflow()
        try:
            async with Nursery() as turns:
                outcome = await self._serve(call, turns)
        except _OverdrawnError as end:
            return self._overdrawn(end)
        except grpc.RpcError as error:
            raise fault_of("sandbox", error) from error
        finally:
            call.cancel()
        if outcome is None:
            raise InfrastructureFaultError("sandbox", "the stream ended without an outcome")
        if outcome.verdict == sandbox_pb2.VERDICT_CANCELLED:
            raise InfrastructureFaultError("sandbox", "the execution was cancelled there")
        outcome = self._at_its_own_wall(outcome)
        conversations = in_order(self._conversations.values())
        return ExecutionRecord(
            outcome=outcome,
            conversations=conversations,
            tool_runs=_in_order(self._tool_runs),
            node_events=self._node_events,
            refusals=[refusal for conversation in conversations for refusal in conversation.refusals],
        )

    def _at_its_own_wall(self, outcome: sandbox_pb2.WorkflowOutcome) -> sandbox_pb2.WorkflowOutcome:
        """What it is worth by the wall clock that the script took by itself.

        The sandbox's limit counts waiting for us as well: whether a script that takes too long meets it or ends before is
        up to the engine's speed. So it is at its limit either way, and has no result: whether it had got to one is, too.

        Raises:
            InfrastructureFaultError: it met the sandbox's limit, and took less by itself than it may.
        """
        limit = self._request.budgets.idle_wall_seconds
        if outcome.use.wall_seconds - outcome.use.waiting_seconds >= limit:
            ended = sandbox_pb2.WorkflowOutcome()
            ended.CopyFrom(outcome)
            for field_name in ("result", "has_result", "result_type", "own_question"):
                ended.ClearField(field_name)
            ended.verdict = sandbox_pb2.VERDICT_WALL_LIMIT
            # Without what was measured: the same for each that is ended so.
            ended.error = f"took {limit:g} s or more by itself: raise budgets.idle_wall_seconds, or let it sleep less"
            return ended
        if outcome.verdict == sandbox_pb2.VERDICT_WALL_LIMIT:
            raise InfrastructureFaultError(
                "executor",
                f"an execution took {outcome.use.wall_seconds:.1f} s, {outcome.use.waiting_seconds:.1f} s of it waiting "
                "for turns",
                remedy="make the engine faster, lower what runs at once, or raise budgets.idle_wall_seconds",
            )
        return outcome

    def _overdrawn(self, end: _OverdrawnError) -> ExecutionRecord:
        """The part of it that no chance had a say in."""
        kept = settled(self._conversations.values(), end.conversation_id)
        ids = {conversation.conversation_id for conversation in kept}
        return ExecutionRecord(
            outcome=sandbox_pb2.WorkflowOutcome(agent_calls=self._request.budgets.agent_calls),
            conversations=kept,
            tool_runs=_in_order(run for run in self._tool_runs if run.conversation_id in ids),
            node_events=[],
            refusals=[refusal for conversation in kept for refusal in conversation.refusals],
            overdrawn=end.reason,
        )

    async def _serve(self, call: WorkflowCall, turns: Nursery) -> sandbox_pb2.WorkflowOutcome | None:
        await call.write(sandbox_pb2.RunWorkflowRequest(start=self._start()))
        outcome = None
        async for response in call:
            match response.WhichOneof("message"):
                case "agent_call":
                    self._account.agent_calls += 1
                    self._check_account(response.agent_call)
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
                wall_seconds=_WALL_PER_OWN_SECOND * budgets.idle_wall_seconds,
            ),
            tool_limits=sandbox_pb2.Limits(
                cpu_seconds=budgets.tool_cpu_seconds,
                memory_bytes=budgets.memory_bytes,
                wall_seconds=WALL_PER_CPU_SECOND * budgets.tool_cpu_seconds,
            ),
            # The sandbox would refuse the call that comes when it is spent, which in a fan-out is anybody's.
            max_agent_calls=budgets.agent_calls + 1,
            seed=self._request.seed,
        )

    def _check_account(self, agent_call: sandbox_pb2.AgentCall) -> None:
        """
        Raises:
            _OverdrawnError: more is spent than may be.
        """
        if reason := self._account.overdrawn():
            raise _OverdrawnError(reason, agent_call.conversation_id)

    async def _answer(self, call: WorkflowCall, agent_call: sandbox_pb2.AgentCall) -> None:
        reply = sandbox_pb2.AgentReply(call_id=agent_call.call_id)
        conversation = self._conversations.get(agent_call.conversation_id)
        if conversation is None:
            conversation = Conversation(agent_call.conversation_id, agent_call.agent)
            self._conversations[agent_call.conversation_id] = conversation
        if conversation.busy:
            reply.refusal = f"conversation {agent_call.conversation_id} has a turn under way already"
        elif problem := self._account.refusal(conversation.turns) or messages_problem(
            conversation, agent_call.messages
        ):
            reply.refusal = problem
        else:
            conversation.busy = True
            with self._lane.within(agent_call.conversation_id).span(SpanKind.TURN, agent_call.agent):
                response = await self._generate(conversation, agent_call)
            conversation.busy = False
            self._take(conversation, agent_call, response, reply)
        if reply.refusal:
            conversation.refusals.append(reply.refusal)
        async with self._writing:
            try:
                await call.write(sandbox_pb2.RunWorkflowRequest(agent_reply=reply))
            except (grpc.RpcError, asyncio.InvalidStateError):
                # The script has ended without waiting for this turn; the reading side knows how.
                return

    def _take(
        self,
        conversation: Conversation,
        agent_call: sandbox_pb2.AgentCall,
        response: policy_pb2.GenerateResponse,
        reply: sandbox_pb2.AgentReply,
    ) -> None:
        """Record a turn, and put it or the reason why there is none into the reply."""
        if response.stop_reason == transcript_pb2.STOP_REASON_CONTEXT_OVERFLOW:
            reply.refusal = "the conversation no longer fits the model's context"
            return
        conversation.append(response.appended)
        self._account.tokens += response.generated_tokens
        self._check_account(agent_call)
        if too_long := reply_refusal(response.text):
            reply.refusal = too_long
            return
        reply.text = response.text
        self._observer.turn(agent_call, response)

    async def _generate(
        self, conversation: Conversation, agent_call: sandbox_pb2.AgentCall
    ) -> policy_pb2.GenerateResponse:
        turn = len(conversation.transcript.messages)
        request = conversation.request
        if not turn:
            request.conversation_id = f"{self._request.execution_id}/{agent_call.conversation_id}"
            request.sampling.CopyFrom(self._request.sampling)
            if self._request.version is not None:
                request.version.CopyFrom(self._request.version)
        request.sampling.seed = seed_of(self._request.seed, f"{agent_call.conversation_id}\x1f{turn}")
        del request.messages[:]
        request.messages.extend(agent_call.messages)
        patience = Patience(self._observer.full)
        while True:
            replica = await self._serving_replica()
            try:
                return await replica.stub.Generate(request, timeout=self._request.turn_seconds)
            except grpc.RpcError as error:
                fault = fault_of("executor", error)
            await patience.wait(self._refused_for_now(replica, fault))

    async def _serving_replica(self) -> Replica:
        """The replica that the execution has a seat at, or another where that one has gone; waits while there is none."""
        if not self._executors.in_rotation(self._replica):
            try:
                await self._executors.somebody()
                self._replica = self._executors.pick(self._request.execution_id)
            except NoReplicasError as error:
                raise InfrastructureFaultError("executor", str(error)) from error
        return self._replica

    def _refused_for_now(self, replica: Replica, fault: InfrastructureFaultError) -> InfrastructureFaultError:
        """The fault again, if the same turn may be asked for again, at this replica or another.

        Raises:
            InfrastructureFaultError: it may not.
        """
        if fault.full:
            return fault
        if fault.code in _GONE:
            self._executors.suspect(replica, fault.text)
        if fault.code is not grpc.StatusCode.FAILED_PRECONDITION:
            raise fault
        wanted, current = self._request.version, self._executors.current
        if wanted is not None and current is not None and wanted != current:
            # The others of its group are of a version that nobody will serve again.
            raise fault
        # It loads weights, or came back with others: it is brought to the right ones, and nothing was generated.
        self._executors.suspect(replica, fault.text)
        self._observer.fault(fault)
        return fault


def _in_order(tool_runs: Iterable[sandbox_pb2.ToolRun]) -> list[sandbox_pb2.ToolRun]:
    """The runs in the order of their conversations, numbered in it: the sandbox numbers them as they end."""
    ordered = sorted(tool_runs, key=lambda run: (place_of(run.conversation_id), run.tool_run_id))
    for number, run in enumerate(ordered, start=1):
        run.tool_run_id = number
    return ordered
