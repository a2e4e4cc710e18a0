"""The designer service: `Designer`, and `Policy` for its own engine or as a forwarder."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Final

import grpc
from prometheus_client import Counter
from troupe.v1 import common_pb2, designer_pb2, designer_pb2_grpc, policy_pb2_grpc
from troupe_contracts.errors import InvalidArgument
from troupe_contracts.health import Health
from troupe_contracts.server import serve
from troupe_inference import wire
from troupe_inference.policy_service import SERVICE_NAME as POLICY_NAME
from troupe_inference.policy_service import PolicyService
from troupe_inference.policy_start import RunningPolicy, start_policy
from troupe_inference.turn_wire import sampling_from_proto

from troupe_designer.prompt import TaskType, load_prompt
from troupe_designer.proposals import Design, Designer, Task
from troupe_designer.settings import DesignerSettings
from troupe_designer.validation import ProblemKind

SERVICE_NAME: Final = "troupe.v1.Designer"
MAX_DESIGNS: Final = 256
DESIGNS: Final = Counter(
    "troupe_designer_designs_total", "Designs that were sampled, by whether their script may run.", ["script"]
)
_TASK_TYPES: Final[Mapping[int, TaskType]] = {
    common_pb2.TASK_TYPE_MATH: TaskType.MATH,
    common_pb2.TASK_TYPE_CODE: TaskType.CODE,
}
_PROBLEM_KINDS: Final = {
    ProblemKind.NO_SCRIPT: designer_pb2.SCRIPT_PROBLEM_KIND_NO_SCRIPT,
    ProblemKind.SYNTAX: designer_pb2.SCRIPT_PROBLEM_KIND_SYNTAX,
    ProblemKind.NO_WORKFLOW: designer_pb2.SCRIPT_PROBLEM_KIND_NO_WORKFLOW,
    ProblemKind.TOO_LONG: designer_pb2.SCRIPT_PROBLEM_KIND_TOO_LONG,
    ProblemKind.CONTEXT_OVERFLOW: designer_pb2.SCRIPT_PROBLEM_KIND_CONTEXT_OVERFLOW,
}


class DesignerService(designer_pb2_grpc.DesignerServicer):
    """Serves one designer."""

    def __init__(self, designer: Designer) -> None:
        self._designer = designer

    async def ProposeDesigns(
        self,
        request: designer_pb2.ProposeDesignsRequest,
        context: grpc.aio.ServicerContext[designer_pb2.ProposeDesignsRequest, designer_pb2.ProposeDesignsResponse],
    ) -> AsyncIterator[designer_pb2.ProposeDesignsResponse]:
        task = task_from_proto(request)
        version = wire.version_from_proto(request.version, "version") if request.HasField("version") else None
        design_ids = tuple(request.design_ids)
        sampling = sampling_from_proto(request.sampling)
        proposal = self._designer.propose(task, design_ids, sampling, version)
        async with contextlib.aclosing(proposal) as designs:
            async for design in designs:
                DESIGNS.labels("rejected" if design.problems else "valid").inc()
                yield designer_pb2.ProposeDesignsResponse(design=design_to_proto(design))


async def run(settings: DesignerSettings) -> None:
    """Serves until told to stop."""
    prompt = load_prompt(settings.prompt)
    health = Health()
    running: list[RunningPolicy] = []

    async def register(server: grpc.aio.Server) -> None:
        started = await start_policy(settings, health)
        running.append(started)
        designer = Designer(started.policy, prompt, settings.max_script_characters)
        designer_pb2_grpc.add_DesignerServicer_to_server(DesignerService(designer), server)
        policy_service = PolicyService(started.policy, started.updates, started.owner)
        policy_pb2_grpc.add_PolicyServicer_to_server(policy_service, server)

    await serve("designer", settings, register, [SERVICE_NAME, POLICY_NAME], health=health)
    for each in running:
        await each.close()


def task_from_proto(request: designer_pb2.ProposeDesignsRequest) -> Task:
    """The task of a request.

    Raises:
        InvalidArgument: a field is missing or out of bounds.
    """
    if not request.question.strip():
        raise InvalidArgument("question", "is empty: send the question of the task")
    task_type = _TASK_TYPES.get(request.task_type)
    if task_type is None:
        raise InvalidArgument("task_type", f"is {request.task_type}: set MATH or CODE")
    design_ids = request.design_ids
    if not 1 <= len(design_ids) <= MAX_DESIGNS:
        raise InvalidArgument("design_ids", f"has {len(design_ids)} ids: send 1 to {MAX_DESIGNS}")
    if not all(design_ids) or len(set(design_ids)) < len(design_ids):
        raise InvalidArgument("design_ids", "holds an empty id, or one twice: each names another design")
    if not request.HasField("sampling"):
        raise InvalidArgument("sampling", "is not set: say how to sample, at least the temperature")
    return Task(request.task_id, request.question, task_type)


def design_to_proto(design: Design) -> designer_pb2.Design:
    """The design as it travels."""
    return designer_pb2.Design(
        design_id=design.design_id,
        transcript=wire.to_proto(design.transcript),
        text=design.text,
        script=design.script,
        problems=[
            designer_pb2.ScriptProblem(kind=_PROBLEM_KINDS[problem.kind], message=problem.message, line=problem.line)
            for problem in design.problems
        ],
        declared_pattern=design.declared_pattern,
        stop_reason=wire.stop_reason_to_proto(design.stop_reason),
    )
