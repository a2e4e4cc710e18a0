"""The rollout of one task: M designs, N executions of each valid one, as a pipeline.

Executions of a design start as soon as that design is there, not when all are. A fault of ours is retried afresh (new
attempt, new ids, nothing kept); when the attempts are used up the whole task is dropped, never a part of a group.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import grpc
import structlog
from troupe.v1 import common_pb2, designer_pb2, designer_pb2_grpc, policy_pb2_grpc, sandbox_pb2_grpc

from troupe_orchestrator.datasets.task import Task
from troupe_orchestrator.fleet import NoReplicasError
from troupe_orchestrator.rewards import RewardConfig
from troupe_orchestrator.rollout.conversations import conversation_payload, token_record
from troupe_orchestrator.rollout.execution import ExecutionRequest, run_execution
from troupe_orchestrator.rollout.faults import InfrastructureFaultError, fault_of
from troupe_orchestrator.rollout.judge import Judge
from troupe_orchestrator.rollout.nursery import Nursery
from troupe_orchestrator.rollout.observer import Observer
from troupe_orchestrator.rollout.timeline import Lane, SpanKind, Timeline
from troupe_orchestrator.run_config import Budgets, DeliveryInstruction
from troupe_orchestrator.tree import DesignPayload, Node, NodeKind, TaskPayload, Tree, node_id, seed_of

logger = structlog.get_logger()
Result = TypeVar("Result")

_DESIGN_SECONDS = 600.0
"""Deadline of sampling all designs of a task."""
_BACKOFF_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Services:
    """Who does the work. Admission: a workflow slot is held from before the sandbox is asked until the outcome."""

    designer: designer_pb2_grpc.DesignerAsyncStub
    pick_executor: Callable[[str], policy_pb2_grpc.PolicyAsyncStub]
    sandbox: sandbox_pb2_grpc.SandboxAsyncStub
    workflow_slots: asyncio.Semaphore
    judge: Judge


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """How each task is rolled out."""

    scope: str
    """Run id or eval job id."""
    step: int
    seed: int
    designs: int
    executions: int
    max_attempts: int
    designer_sampling: common_pb2.Sampling
    executor_sampling: common_pb2.Sampling
    designer_version: common_pb2.PolicyVersion | None
    executor_version: common_pb2.PolicyVersion | None
    budgets: Budgets
    delivery_instruction: DeliveryInstruction
    rewards: RewardConfig


class TaskDroppedError(Exception):
    """All attempts ended in faults of ours."""

    def __init__(self, task_id: str, fault: InfrastructureFaultError) -> None:
        self.task_id = task_id
        self.fault = fault
        super().__init__(f"task {task_id}: {fault}")


async def roll_task(task: Task, plan: RolloutPlan, services: Services, observer: Observer, timeline: Timeline) -> Tree:
    """Roll one task out.

    Raises:
        TaskDroppedError: a design or an execution failed for reasons of ours in every attempt.
    """
    return await _TaskRollout(task, plan, services, observer, timeline).run()


class _TaskRollout:
    def __init__(
        self, task: Task, plan: RolloutPlan, services: Services, observer: Observer, timeline: Timeline
    ) -> None:
        self._task = task
        self._plan = plan
        self._services = services
        self._observer = observer
        self._timeline = timeline
        self._type = common_pb2.TASK_TYPE_CODE if task.task_type == "code" else common_pb2.TASK_TYPE_MATH

    async def run(self) -> Tree:
        root = Node(
            id=self._id("task", 0),
            parent_id="",
            kind=NodeKind.TASK,
            attempt=0,
            payload=TaskPayload(self._task.task_id, self._task.family, self._task.task_type, self._task.question),
        )
        nodes = await self._attempts(lambda attempt: self._roll_designs(root, attempt))
        return Tree((root, *nodes))

    async def _roll_designs(self, root: Node, attempt: int) -> list[Node]:
        """All designs of one attempt with their executions, in the order of the design ids."""
        design_ids = [self._id(f"design/{index}", attempt) for index in range(self._plan.designs)]
        sampling = common_pb2.Sampling()
        sampling.CopyFrom(self._plan.designer_sampling)
        sampling.seed = seed_of(self._plan.seed, design_ids[0])
        request = designer_pb2.ProposeDesignsRequest(
            task_id=self._task.task_id,
            question=self._task.question,
            task_type=self._type,
            design_ids=design_ids,
            sampling=sampling,
            version=self._plan.designer_version,
        )
        subtrees: dict[str, asyncio.Task[list[Node]]] = {}
        begun = self._timeline.now()
        try:
            async with Nursery() as group:
                async for response in self._services.designer.ProposeDesigns(request, timeout=_DESIGN_SECONDS):
                    design = response.design
                    self._observer.design(design)
                    if design.design_id not in design_ids or design.design_id in subtrees:
                        raise InfrastructureFaultError(
                            "designer", f"sent design {design.design_id!r}, which is not due"
                        )
                    index = design_ids.index(design.design_id)
                    lane = self._timeline.lane(self._task.task_id, f"design {index + 1}")
                    lane.add(SpanKind.DESIGN, "is sampled", begun)
                    subtrees[design.design_id] = group.create_task(
                        self._roll_executions(root, design, attempt, index, lane)
                    )
        except grpc.RpcError as error:
            raise fault_of("designer", error) from error
        missing = [design_id for design_id in design_ids if design_id not in subtrees]
        if missing:
            raise InfrastructureFaultError("designer", f"{len(missing)} designs never came: {missing}")
        return [node for design_id in design_ids for node in subtrees[design_id].result()]

    async def _roll_executions(
        self, root: Node, design: designer_pb2.Design, attempt: int, index: int, lane: Lane
    ) -> list[Node]:
        node = Node(
            id=design.design_id,
            parent_id=root.id,
            kind=NodeKind.DESIGN,
            attempt=attempt,
            payload=DesignPayload(
                text=design.text,
                script=design.script,
                problems=tuple(problem.message for problem in design.problems),
                declared_pattern=design.declared_pattern,
            ),
        )
        conversation = Node(
            id=self._id(f"design/{index}/conversation", attempt),
            parent_id=node.id,
            kind=NodeKind.CONVERSATION,
            attempt=attempt,
            payload=conversation_payload("designer", "designer", "", design.transcript),
            tokens=token_record(design.transcript),
        )
        if design.problems:
            return [node, conversation]
        async with Nursery() as group:
            executions = [
                group.create_task(
                    self._execute_afresh(
                        node,
                        f"design/{index}/{attempt}/execution/{number}",
                        lane.within(f"execution {number + 1}"),
                    )
                )
                for number in range(self._plan.executions)
            ]
        return [node, conversation, *(part for subtree in executions for part in subtree.result())]

    async def _execute_afresh(self, design: Node, path: str, lane: Lane) -> list[Node]:
        return await self._attempts(lambda attempt: self._execute(design, path, lane, attempt))

    async def _execute(self, design: Node, path: str, lane: Lane, attempt: int) -> list[Node]:
        """One execution with its conversations."""
        assert isinstance(design.payload, DesignPayload)
        plan = self._plan
        execution_id = self._id(path, attempt)
        request = ExecutionRequest(
            execution_id=execution_id,
            script=design.payload.script,
            question=self._task.question,
            task_type=self._type,
            delivery_instruction=getattr(plan.delivery_instruction, self._task.task_type),
            seed=seed_of(plan.seed, execution_id),
            sampling=plan.executor_sampling,
            version=plan.executor_version,
            budgets=plan.budgets,
        )
        queued = self._timeline.now()
        async with self._services.workflow_slots:
            lane.add(SpanKind.QUEUE, "waits for a slot", queued)
            with lane.span(SpanKind.EXECUTION, "runs"):
                record = await run_execution(
                    request, self._services.sandbox, self._pick_executor(execution_id), self._observer, lane
                )
        with lane.span(SpanKind.GRADING, "is graded"):
            payload = await self._services.judge.judge(
                self._task, design.payload.script, record, execution_id, plan.budgets, plan.rewards
            )
        execution = Node(
            id=execution_id, parent_id=design.id, kind=NodeKind.EXECUTION, attempt=attempt, payload=payload
        )
        conversations = [
            Node(
                id=self._id(f"{path}/conversation/{number}", attempt),
                parent_id=execution_id,
                kind=NodeKind.CONVERSATION,
                attempt=attempt,
                payload=conversation_payload(
                    "executor", conversation.agent, conversation.conversation_id, conversation.transcript
                ),
                tokens=token_record(conversation.transcript),
            )
            for number, conversation in enumerate(record.conversations)
            if conversation.transcript.messages
        ]
        self._observer.execution_done()
        return [execution, *conversations]

    def _pick_executor(self, execution_id: str) -> policy_pb2_grpc.PolicyAsyncStub:
        try:
            return self._services.pick_executor(execution_id)
        except NoReplicasError as error:
            raise InfrastructureFaultError("executor", str(error)) from error

    async def _attempts(self, work: Callable[[int], Awaitable[Result]]) -> Result:
        """Try afresh after a fault of ours.

        Raises:
            TaskDroppedError: the attempts are used up, or the same would be refused again.
        """
        attempt = 0
        while True:
            try:
                return await work(attempt)
            except InfrastructureFaultError as fault:
                logger.warning("infrastructure fault", task=self._task.task_id, attempt=attempt, fault=str(fault))
                attempt += 1
                if attempt == self._plan.max_attempts or not fault.retriable:
                    raise TaskDroppedError(self._task.task_id, fault) from fault
                await asyncio.sleep(max(fault.retry_after, _BACKOFF_SECONDS * 2**attempt))

    def _id(self, path: str, attempt: int) -> str:
        return node_id(self._plan.scope, self._plan.step, self._task.task_id, path, attempt)
