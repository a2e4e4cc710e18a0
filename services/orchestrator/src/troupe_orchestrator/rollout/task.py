"""The rollout of one task: M designs, N executions of each valid one, as a pipeline.

Executions of a design start as soon as that design is there, not when all are. A fault of ours is retried afresh (new
attempt, new ids, nothing kept); when the attempts are used up the whole task is dropped, never a part of a group. A service
that has no room is asked again, which is no attempt.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import grpc
import structlog
from troupe.v1 import common_pb2, designer_pb2
from troupe_contracts import log
from troupe_contracts.scripts import MAX_SCRIPT_CHARACTERS, script_refusal

from troupe_orchestrator.datasets.task import Task
from troupe_orchestrator.fleet import TURN_SECONDS, PolicyFleet
from troupe_orchestrator.rewards import RewardConfig
from troupe_orchestrator.rollout.admission import Admission
from troupe_orchestrator.rollout.conversations import conversation_payload, token_record
from troupe_orchestrator.rollout.execution import ExecutionRecord, ExecutionRequest, run_execution
from troupe_orchestrator.rollout.faults import InfrastructureFaultError, Patience, fault_of
from troupe_orchestrator.rollout.judge import Judge
from troupe_orchestrator.rollout.nursery import Nursery
from troupe_orchestrator.rollout.observer import Observer
from troupe_orchestrator.rollout.timeline import Lane, SpanKind, Timeline
from troupe_orchestrator.run_config import Budgets, DeliveryInstruction
from troupe_orchestrator.tree import DesignPayload, Node, NodeKind, TaskPayload, Tree, node_id, seed_of, task_node_id

logger = structlog.get_logger()
Result = TypeVar("Result")

_DESIGN_SECONDS = 600.0
"""Deadline of sampling all designs of a task."""
_BACKOFF_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Services:
    """Who does the work."""

    admission: Admission
    """Of all who share the sandboxes."""
    designers: PolicyFleet
    executors: PolicyFleet
    judge: Judge
    turn_seconds: float = TURN_SECONDS


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """How each task is rolled out."""

    scope: str
    """Run id or eval job id; of a question an id of its own."""
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
    admission_scope: str = ""
    """With whom it takes its turn at being let in; empty: those of its `scope`."""


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
    with log.bound(run=plan.scope, step=plan.step, task=task.task_id, trace=log.new_trace()):
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
        self._admission_scope = plan.admission_scope or plan.scope
        self._type = common_pb2.TASK_TYPE_CODE if task.task_type == "code" else common_pb2.TASK_TYPE_MATH

    async def run(self) -> Tree:
        root = Node(
            id=task_node_id(self._plan.scope, self._plan.step, self._task.task_id),
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
        sampling.seed = self._seed("design/0", attempt)
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
        async with Nursery() as group, contextlib.aclosing(self._designs(request)) as designs:
            async for design in designs:
                self._observer.design(design)
                if design.design_id not in design_ids or design.design_id in subtrees:
                    raise InfrastructureFaultError("designer", f"sent design {design.design_id!r}, which is not due")
                index = design_ids.index(design.design_id)
                lane = self._timeline.lane(self._task.task_id, f"design {index + 1}")
                lane.add(SpanKind.DESIGN, "is sampled", begun)
                subtrees[design.design_id] = group.create_task(
                    self._roll_executions(root, design, attempt, index, lane)
                )
        missing = [design_id for design_id in design_ids if design_id not in subtrees]
        if missing:
            raise InfrastructureFaultError("designer", f"{len(missing)} designs never came: {missing}")
        return [node for design_id in design_ids for node in subtrees[design_id].result()]

    async def _designs(self, request: designer_pb2.ProposeDesignsRequest) -> AsyncGenerator[designer_pb2.Design, None]:
        """The designs as they come; the engine's seats are given back when the last one has."""
        designers = self._services.designers
        async with self._services.admission.designs(
            self._admission_scope, self._task.task_id, len(request.design_ids), designers
        ) as designer:
            try:
                async for response in designer.designer.ProposeDesigns(request, timeout=_DESIGN_SECONDS):
                    yield response.design
            except grpc.RpcError as error:
                fault = fault_of("designer", error)
                if fault.code is grpc.StatusCode.UNAVAILABLE:
                    designers.suspect(designer, fault.text)
                if fault.code is grpc.StatusCode.FAILED_PRECONDITION and self._may_serve_later():
                    designers.suspect(designer, fault.text)
                    fault.full = True
                raise fault from error

    def _may_serve_later(self) -> bool:
        """Whether a designer that has another version now, or loads one, comes to what this plan needs."""
        wanted, current = self._plan.designer_version, self._services.designers.current
        return wanted is None or current is None or wanted == current

    async def _roll_executions(
        self, root: Node, design: designer_pb2.Design, attempt: int, index: int, lane: Lane
    ) -> list[Node]:
        problems = tuple(problem.message for problem in design.problems)
        if not problems and (refusal := script_refusal(design.script)):
            # The designer should have said so: a script that no sandbox takes is the policy's doing all the same.
            problems = (refusal,)
        node = Node(
            id=design.design_id,
            parent_id=root.id,
            kind=NodeKind.DESIGN,
            attempt=attempt,
            payload=DesignPayload(
                text=design.text,
                script=design.script[:MAX_SCRIPT_CHARACTERS],
                problems=problems,
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
        if problems:
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
            seed=self._seed(path, attempt),
            sampling=plan.executor_sampling,
            version=plan.executor_version,
            budgets=plan.budgets,
            turn_seconds=self._services.turn_seconds,
        )
        with log.bound(execution=execution_id):
            record = await self._run_admitted(request, lane)
            with lane.span(SpanKind.GRADING, "is graded"):
                payload = await self._services.judge.judge(
                    self._task,
                    design.payload.script,
                    record,
                    self._admission_scope,
                    execution_id,
                    plan.budgets,
                    plan.rewards,
                    self._observer.full,
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

    async def _run_admitted(self, request: ExecutionRequest, lane: Lane) -> ExecutionRecord:
        """Run the execution once it is let in; again, where the sandbox had no room after all."""
        services, patience = self._services, Patience(self._observer.full)
        while True:
            queued = self._timeline.now()
            async with services.admission.execution(
                self._admission_scope, request.execution_id, services.executors
            ) as place:
                lane.add(SpanKind.QUEUE, "waits for a slot", queued)
                try:
                    with lane.span(SpanKind.EXECUTION, "runs"):
                        return await run_execution(request, place, services.executors, self._observer, lane)
                except InfrastructureFaultError as fault:
                    if fault.service != "sandbox":
                        raise
                    if fault.code is grpc.StatusCode.UNAVAILABLE:
                        services.admission.suspect(place.sandbox, fault.text)
                    if not fault.full:
                        raise
                    full = fault
            await patience.wait(full)

    async def _attempts(self, work: Callable[[int], Awaitable[Result]]) -> Result:
        """Try afresh after a fault of ours.

        Raises:
            TaskDroppedError: the attempts are used up, or the same would be refused again.
        """
        attempt, faults, patience = 0, 0, Patience(self._observer.full)
        while True:
            try:
                return await work(attempt)
            except InfrastructureFaultError as raised:
                fault = raised
            # New ids in any case: what was begun before may be running still.
            attempt += 1
            if fault.full:
                try:
                    await patience.wait(fault)
                    continue
                except InfrastructureFaultError as lasting:
                    fault = lasting
            faults += 1
            self._observer.fault(fault)
            logger.warning("infrastructure fault", task=self._task.task_id, attempt=attempt, fault=str(fault))
            if faults == self._plan.max_attempts or not fault.retriable:
                raise TaskDroppedError(self._task.task_id, fault) from fault
            await asyncio.sleep(max(fault.retry_after, _BACKOFF_SECONDS * 2**faults))

    def _seed(self, path: str, attempt: int) -> int:
        """A sampling seed that the scope has no say in: with one seed a fork samples what its parent would have."""
        return seed_of(self._plan.seed, node_id("", self._plan.step, self._task.task_id, path, attempt))

    def _id(self, path: str, attempt: int) -> str:
        return node_id(self._plan.scope, self._plan.step, self._task.task_id, path, attempt)
