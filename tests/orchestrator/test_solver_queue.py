"""Questions that wait for the engines: all in one queue, whose cost grows with their number and no faster."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from troupe.v1 import designer_pb2, solver_pb2
from troupe_orchestrator.engines import Engines, Watched
from troupe_orchestrator.evaluation.solver import SolverServicer
from troupe_orchestrator.fleet import PolicyFleet, Replica, SandboxFleet
from troupe_orchestrator.rollout.admission import Admission
from troupe_orchestrator.rollout.judge import Judge
from troupe_orchestrator.rollout.task import Services
from troupe_orchestrator.rotation import Seats
from troupe_orchestrator.run_config import ServingConfig


class Counted(PolicyFleet):
    """Counts how often it is asked who serves: as often as somebody looks for a place among its replicas."""

    looks = 0

    def serving(self) -> list[Replica]:
        self.looks += 1
        return super().serving()


class Proposes:
    """A stand-in for a designer, whose designs cannot be run."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def ProposeDesigns(
        self, request: designer_pb2.ProposeDesignsRequest, **_: Any
    ) -> AsyncIterator[designer_pb2.ProposeDesignsResponse]:
        self.asked.append(request.question)
        await asyncio.sleep(0)
        problem = designer_pb2.ScriptProblem(message="no script")
        design = designer_pb2.Design(design_id=request.design_ids[0], problems=[problem])
        yield designer_pb2.ProposeDesignsResponse(design=design)


async def solved(questions: int) -> tuple[Counted, list[str]]:
    """Ask so many questions at once of one designer with one seat; its fleet, and the questions as it got them."""
    designer: Any = Proposes()
    context: Any = None
    fleet = Counted([Replica("127.0.0.1:1", designer, designer, Seats(1))], "designer")
    sandboxes = SandboxFleet([])
    services = Services(Admission(sandboxes), fleet, fleet, Judge(None))
    engines = Engines(services, fleet, fleet, (), sandboxes, Watched(None))
    solver = SolverServicer(engines, ServingConfig())

    async def ask(number: int) -> None:
        request = solver_pb2.SolveRequest(question=f"Question {number}?")
        events = [event async for event in solver.Solve(request, context)]
        assert events[-1].answer.status == "policy_fault"

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for number in range(questions):
            group.create_task(ask(number))
    return fleet, designer.asked


async def test_many_questions_that_wait_cost_no_more_for_each_than_few() -> None:
    few, many = (await solved(50))[0].looks, (await solved(500))[0].looks
    assert many <= 10.5 * few


async def test_questions_are_solved_in_the_order_in_which_they_came() -> None:
    _, asked = await solved(20)
    assert asked == [f"Question {number}?" for number in range(20)]
