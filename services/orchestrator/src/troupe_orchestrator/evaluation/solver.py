"""The Solver service: one question, one design, one execution, told as it happens."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace

from troupe.v1 import common_pb2, designer_pb2, policy_pb2, sandbox_pb2, solver_pb2, solver_pb2_grpc
from troupe_contracts.calls import Context
from troupe_contracts.errors import InvalidArgument, Relayed, Unavailable

from troupe_orchestrator.datasets.task import AssertionTests, MathReference, Task
from troupe_orchestrator.engines import Engines, require
from troupe_orchestrator.rollout.faults import InfrastructureFaultError
from troupe_orchestrator.rollout.judge import Judge
from troupe_orchestrator.rollout.task import RolloutPlan, TaskDroppedError, roll_task
from troupe_orchestrator.rollout.timeline import Timeline
from troupe_orchestrator.run_config import ServingConfig
from troupe_orchestrator.tree import DesignPayload, ExecutionPayload, NodeKind, Tree

MAX_QUESTION_CHARACTERS = 100_000
_ADMISSION_SCOPE = "Solve"
"""Of all questions: they are let in in the order in which they came. No run or job has a name with a capital."""


class SolverServicer(solver_pb2_grpc.SolverServicer):
    """Serves troupe.v1.Solver. Solving takes the engines as they are, between or within the steps of a run."""

    def __init__(self, engines: Engines | None, serving: ServingConfig) -> None:
        self._engines = engines
        self._serving = serving

    async def Solve(self, request: solver_pb2.SolveRequest, context: Context) -> AsyncIterator[solver_pb2.SolveEvent]:
        _check(request)
        services = replace(require(self._engines).services, judge=Judge(None))
        told = _Told()
        task = _ungraded(request)
        rolling = asyncio.create_task(roll_task(task, self._plan(request), services, told, Timeline()))
        rolling.add_done_callback(lambda _: told.events.put_nowait(None))
        try:
            while (event := await told.events.get()) is not None:
                yield event
            yield solver_pb2.SolveEvent(answer=_answer(await rolling))
        except TaskDroppedError as drop:
            fault = drop.fault
            raise (Unavailable(str(fault)) if fault.error is None else Relayed(fault.error, fault.service)) from drop
        finally:
            rolling.cancel()

    def _plan(self, request: solver_pb2.SolveRequest) -> RolloutPlan:
        def sampling(max_tokens: int) -> common_pb2.Sampling:
            chosen = common_pb2.Sampling(temperature=self._serving.temperature, max_tokens=max_tokens)
            if request.HasField("sampling"):
                chosen.CopyFrom(request.sampling)
                chosen.max_tokens = chosen.max_tokens or max_tokens
            return chosen

        return RolloutPlan(
            scope=f"solve-{uuid.uuid4().hex[:8]}",
            step=0,
            seed=request.sampling.seed if request.sampling.HasField("seed") else uuid.uuid4().int & 0x7FFFFFFF,
            designs=1,
            executions=1,
            max_attempts=self._serving.max_attempts,
            designer_sampling=sampling(self._serving.sampling.designer.max_tokens),
            executor_sampling=sampling(self._serving.sampling.executor.max_tokens),
            designer_version=None,
            executor_version=None,
            budgets=self._serving.budgets,
            delivery_instruction=self._serving.delivery_instruction,
            rewards=self._serving.rewards,
            admission_scope=_ADMISSION_SCOPE,
        )


class _Told:
    """Puts what happens on a queue, in order."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[solver_pb2.SolveEvent | None] = asyncio.Queue()

    def design(self, design: designer_pb2.Design) -> None:
        self.events.put_nowait(solver_pb2.SolveEvent(design=design))

    def turn(self, call: sandbox_pb2.AgentCall, response: policy_pb2.GenerateResponse) -> None:
        turn = solver_pb2.AgentTurn(
            conversation_id=call.conversation_id,
            agent=call.agent,
            messages=call.messages,
            reply=response.text,
            generated_tokens=response.generated_tokens,
        )
        self.events.put_nowait(solver_pb2.SolveEvent(turn=turn))

    def tool_run(self, tool_run: sandbox_pb2.ToolRun) -> None:
        self.events.put_nowait(solver_pb2.SolveEvent(tool_run=tool_run))

    def node_event(self, event: sandbox_pb2.NodeEvent) -> None:
        self.events.put_nowait(solver_pb2.SolveEvent(node_event=event))

    def execution_done(self) -> None: ...

    def fault(self, fault: InfrastructureFaultError) -> None: ...

    def full(self, fault: InfrastructureFaultError) -> None: ...


def _check(request: solver_pb2.SolveRequest) -> None:
    if not request.question.strip():
        raise InvalidArgument("question", "is empty")
    if request.task_type not in common_pb2.TaskType.values():
        raise InvalidArgument("task_type", f"is {request.task_type}, must be one of {common_pb2.TaskType.keys()}")
    if len(request.question) > MAX_QUESTION_CHARACTERS:
        raise InvalidArgument(
            "question", f"has {len(request.question)} characters, the maximum is {MAX_QUESTION_CHARACTERS}"
        )


def _ungraded(request: solver_pb2.SolveRequest) -> Task:
    """A task whose grade nobody will look at."""
    if request.task_type == common_pb2.TASK_TYPE_CODE:
        reference = AssertionTests(setup="", cases=(), entry_point="")
        return Task("question", "question", "code", request.question, reference)
    return Task("question", "question", "math", request.question, MathReference(""))


def _answer(tree: Tree) -> solver_pb2.SolveAnswer:
    executions = list(tree.of_kind(NodeKind.EXECUTION))
    if not executions:
        design = next(tree.of_kind(NodeKind.DESIGN)).payload
        assert isinstance(design, DesignPayload)
        return solver_pb2.SolveAnswer(
            status="policy_fault", reason=f"the design cannot be run: {'; '.join(design.problems)}"
        )
    record = executions[0].payload
    assert isinstance(record, ExecutionPayload)
    return solver_pb2.SolveAnswer(
        answer=record.answer, result=record.result, status=record.status.value, reason=record.reason
    )
