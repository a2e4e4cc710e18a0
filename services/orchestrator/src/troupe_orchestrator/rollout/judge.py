"""From what happened to what it is worth: answer, provenance, grade, reward terms.

Nothing that a script printed is looked at. A result counts only if a recorded turn of the executor (or an attested tool run
that such a turn asked for) says the same; a grader that dies is a fault of ours, never a wrong answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import grpc
from troupe.v1 import sandbox_pb2

from troupe_orchestrator.datasets.task import MathReference, Task
from troupe_orchestrator.fleet import SandboxReplica
from troupe_orchestrator.grading.code_grading import refusal, run_tests, run_tests_request
from troupe_orchestrator.grading.grades import UNGRADABLE, Correct, Grade, GraderFault
from troupe_orchestrator.grading.workers import MathGrader
from troupe_orchestrator.patterns import NodeEvent, pattern_of
from troupe_orchestrator.provenance import Provenance, RecordedConversation, answer_in_script, trace_result
from troupe_orchestrator.rewards import (
    ExecutionFacts,
    RewardBreakdown,
    RewardConfig,
    RewardTermError,
    delivery_share,
    reward,
    solution_share,
)
from troupe_orchestrator.rollout.admission import Admission
from troupe_orchestrator.rollout.budget import WALL_PER_CPU_SECOND
from troupe_orchestrator.rollout.conversations import Conversation
from troupe_orchestrator.rollout.execution import ExecutionRecord
from troupe_orchestrator.rollout.faults import InfrastructureFaultError, Patience, Told, fault_of
from troupe_orchestrator.run_config import Budgets
from troupe_orchestrator.tree import ExecutionPayload, ExecutionStatus, NodeVisit, ToolRunRecord

_TESTS_SECONDS = 600.0
_STARVED_PER_WALL = 4
"""So many times its wall limit a program gets at most in addition, where the sandbox is short of processors."""
"""Deadline of all hidden tests of one solution, beside the time that they may take one after another."""
_TEST_ATTEMPTS = 2
_GRADER_REMEDY = "see what ends it: memory of this machine, or the task's reference, which the text then names"
_BUDGET_SPENT = frozenset(
    {
        sandbox_pb2.VERDICT_CPU_LIMIT,
        sandbox_pb2.VERDICT_WALL_LIMIT,
        sandbox_pb2.VERDICT_MEMORY_LIMIT,
        sandbox_pb2.VERDICT_OUTPUT_LIMIT,
        sandbox_pb2.VERDICT_PROCESS_LIMIT,
        sandbox_pb2.VERDICT_POLICY_VIOLATION,
    }
)
"""Ends that are the script's fault also where it had a result: a script that loops after its run must not succeed. One
that raises after its run has an answer; that is flagged."""


class Grader(Protocol):
    """Says whether an answer is right."""

    async def grade(
        self, task: Task, answer: str, scope: str, execution_id: str, budgets: Budgets, full: Told
    ) -> Grade: ...


@dataclass(frozen=True, slots=True)
class TaskGrader:
    """Values by the math grader's workers, programs by all hidden tests in the sandbox."""

    math: MathGrader
    admission: Admission

    async def grade(
        self, task: Task, answer: str, scope: str, execution_id: str, budgets: Budgets, full: Told
    ) -> Grade:
        """Grade one answer. Never raises for what the answer is.

        Args:
            full: told of a sandbox that has had no room for a while.

        Raises:
            InfrastructureFaultError: no sandbox serves.
        """
        if isinstance(task.reference, MathReference):
            return await self.math.grade(task.reference, answer, task.grader, task.question)
        refused = refusal(answer)
        if refused is not None:
            return refused
        request = run_tests_request(
            task,
            answer,
            execution_id,
            sandbox_pb2.Limits(
                cpu_seconds=budgets.test_cpu_seconds,
                wall_seconds=WALL_PER_CPU_SECOND * budgets.test_cpu_seconds,
                memory_bytes=budgets.memory_bytes,
            ),
        )
        attempts, patience = 0, Patience(full)
        while True:
            async with self.admission.tests(scope) as sandbox:
                ended = await self._run(task, request, sandbox)
            if not isinstance(ended, InfrastructureFaultError):
                return ended
            if ended.full:
                await patience.wait(ended)
                continue
            attempts += 1
            if attempts == _TEST_ATTEMPTS or not ended.retriable:
                raise ended

    async def _run(
        self, task: Task, request: sandbox_pb2.RunTestsRequest, sandbox: SandboxReplica
    ) -> Grade | InfrastructureFaultError:
        cases = len(request.stdin_tests.cases) or len(request.assertion_tests.cases)
        deadline = _TESTS_SECONDS + cases * (1 + _STARVED_PER_WALL) * request.limits.wall_seconds
        try:
            return await run_tests(sandbox.stub, task, request, deadline)
        except grpc.RpcError as error:
            fault = fault_of("sandbox", error)
            if fault.code is grpc.StatusCode.UNAVAILABLE:
                self.admission.suspect(sandbox, fault.text)
            return fault


@dataclass(frozen=True, slots=True)
class Judge:
    """Turns records into payloads. Without a grader (solving) nothing is graded and nothing succeeds."""

    grader: Grader | None

    async def judge(
        self,
        task: Task,
        script: str,
        record: ExecutionRecord,
        scope: str,
        execution_id: str,
        budgets: Budgets,
        rewards: RewardConfig,
        full: Told,
    ) -> ExecutionPayload:
        """Judge one execution.

        Args:
            scope: on whose account tests are let in.
            full: told of a sandbox that has had no room for tests for a while.

        Raises:
            InfrastructureFaultError: the grader died or overran in every attempt, or a plug-in's reward term failed.
        """
        outcome = record.outcome
        provenance = trace_result(
            outcome.result if outcome.has_result else "",
            task.task_type,
            [_recorded(conversation) for conversation in record.conversations],
            [_tool_run(run) for run in record.tool_runs],
        )
        success, reason, ungradable = False, "", False
        if provenance.answer is None:
            reason = _why_no_answer(record)
        elif outcome.verdict in _BUDGET_SPENT:
            reason = _ended_by(outcome)
        elif not provenance.ok:
            reason = provenance.reason
        elif self.grader is not None:
            grade = await self.grader.grade(task, provenance.answer.text, scope, execution_id, budgets, full)
            if isinstance(grade, GraderFault):
                raise InfrastructureFaultError("grader", grade.reason, remedy=_GRADER_REMEDY)
            if isinstance(grade, Correct):
                success = True
            else:
                reason, ungradable = grade.reason, grade.ungradable
        return _payload(task, script, record, provenance, rewards, success, reason, ungradable)


def _payload(
    task: Task,
    script: str,
    record: ExecutionRecord,
    provenance: Provenance,
    rewards: RewardConfig,
    success: bool,
    reason: str,
    ungradable: bool,
) -> ExecutionPayload:
    outcome, answer = record.outcome, provenance.answer
    last_turns = [conversation.replies()[-1] for conversation in record.conversations if conversation.replies()]
    breakdown = _reward(
        rewards,
        ExecutionFacts(
            success=success,
            delivery_format=delivery_share(last_turns) if provenance.ok else 0.0,
            solution_format=0.0 if not provenance.ok else solution_share(provenance.turn or None, task.task_type),
            agent_calls=outcome.agent_calls,
            task_type=task.task_type,
            question=task.question,
            answer="" if answer is None else answer.text,
            script=script,
            last_turns=tuple(last_turns),
        ),
    )
    return ExecutionPayload(
        status=(
            ExecutionStatus.OK
            if provenance.ok and outcome.verdict not in _BUDGET_SPENT
            else ExecutionStatus.POLICY_FAULT
        ),
        reason=reason,
        result=outcome.result,
        answer="" if answer is None else answer.text,
        success=success,
        parseable=answer is not None and answer.formatted and provenance.ok,
        executed_pattern=pattern_of([_node_event(event) for event in record.node_events]),
        visits=_visits(record.node_events),
        tool_runs=tuple(_tool_run(run) for run in record.tool_runs),
        terms=breakdown.terms,
        flags=(
            *_flags(script, record, "" if answer is None else answer.text, task),
            *((UNGRADABLE,) if ungradable else ()),
        ),
        agent_calls=outcome.agent_calls,
        cpu_seconds=outcome.use.cpu_seconds,
        wall_seconds=outcome.use.wall_seconds,
        waiting_seconds=outcome.use.waiting_seconds,
        profile=outcome.profile,
    )


def _reward(config: RewardConfig, facts: ExecutionFacts) -> RewardBreakdown:
    try:
        return reward(config, facts)
    except RewardTermError as error:
        raise InfrastructureFaultError("reward", str(error)) from error


def _why_no_answer(record: ExecutionRecord) -> str:
    """The first cause that is the policy's doing."""
    outcome = record.outcome
    if record.overdrawn:
        return record.overdrawn
    if record.refusals:
        return record.refusals[0]
    if outcome.verdict != sandbox_pb2.VERDICT_OK:
        return _ended_by(outcome)
    return "the workflow returned no final answer" if outcome.has_result else "the script ran no workflow"


def _ended_by(outcome: sandbox_pb2.WorkflowOutcome) -> str:
    last_line = outcome.error.strip().splitlines()[-1:] or [""]
    return f"{_verdict(outcome.verdict)}: {last_line[0]}".rstrip(": ")


def _flags(script: str, record: ExecutionRecord, answer: str, task: Task) -> list[str]:
    outcome = record.outcome
    flags = []
    if answer and answer_in_script(script, answer, task.task_type):
        flags.append("answer_in_script")
    if outcome.own_question:
        flags.append("own_question")
    if record.refusals:
        flags.append("refused_turns")
    if record.overdrawn:
        flags.append("overdrawn")
    elif outcome.verdict != sandbox_pb2.VERDICT_OK:
        flags.append(_verdict(outcome.verdict))
    return flags


def _recorded(conversation: Conversation) -> RecordedConversation:
    return RecordedConversation(
        conversation_id=conversation.conversation_id,
        turns=tuple(conversation.replies()),
    )


def _tool_run(run: sandbox_pb2.ToolRun) -> ToolRunRecord:
    return ToolRunRecord(
        tool_run_id=run.tool_run_id,
        conversation_id=run.conversation_id,
        code=run.code,
        output=run.output,
        verdict=_verdict(run.verdict),
    )


def _node_event(event: sandbox_pb2.NodeEvent) -> NodeEvent:
    return NodeEvent(
        entered=event.kind == sandbox_pb2.NodeEvent.KIND_ENTER,
        visit_id=event.visit_id,
        parent_visit_id=event.parent_visit_id,
        node=event.node,
        node_type=event.node_type,
        result_type=event.result_type,
    )


def _visits(events: Sequence[sandbox_pb2.NodeEvent]) -> tuple[NodeVisit, ...]:
    """The visits in the order in which they began, each with the type of its result."""
    visits: dict[int, NodeVisit] = {}
    for event in events:
        visits[event.visit_id] = NodeVisit(
            visit_id=event.visit_id,
            parent_visit_id=event.parent_visit_id,
            node=event.node,
            node_type=event.node_type,
            result_type=event.result_type,
        )
    return tuple(visits.values())


def _verdict(verdict: sandbox_pb2.Verdict.ValueType) -> str:
    return sandbox_pb2.Verdict.Name(verdict).removeprefix("VERDICT_").lower()
