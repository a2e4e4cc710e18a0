"""The orchestrator's public services, with answers that are written down here."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from troupe.v1 import (
    common_pb2,
    designer_pb2,
    evaluation_pb2,
    evaluation_pb2_grpc,
    sandbox_pb2,
    solver_pb2,
    solver_pb2_grpc,
    training_pb2,
    training_pb2_grpc,
)
from troupe_contracts.errors import InvalidArgument, NotFound
from troupe_contracts.settings import ServiceSettings

SCRIPT = 'agent = AgentNode(name="solver")\nprint(agent.run("[red]?"))\n'


class OrchestratorSettings(ServiceSettings):
    """The settings that the supervisor wires."""

    data_dir: Path
    designer: str = ""
    executor: str = ""
    sandbox: str = ""
    learner: str = ""


class Solver(solver_pb2_grpc.SolverServicer):
    """Solves anything with 42, except questions that name another end."""

    async def Solve(self, request: solver_pb2.SolveRequest, context: Any) -> AsyncIterator[solver_pb2.SolveEvent]:
        if request.question == "wait":
            await asyncio.sleep(600)
        design = designer_pb2.Design(design_id="d", script=SCRIPT, declared_pattern="single")
        yield solver_pb2.SolveEvent(design=design)
        yield solver_pb2.SolveEvent(
            turn=solver_pb2.AgentTurn(
                agent="solver",
                messages=[
                    common_pb2.ChatMessage(role=common_pb2.MESSAGE_ROLE_USER, content=request.question),
                ],
                reply="the [bold]reply[/bold]\x1b[2J",
                generated_tokens=5,
            )
        )
        yield solver_pb2.SolveEvent(tool_run=sandbox_pb2.ToolRun(code="print(6 * 7)", output="42\n"))
        if request.question == "fail":
            answer = solver_pb2.SolveAnswer(status="policy_fault", reason="the script raised ValueError")
        else:
            answer = solver_pb2.SolveAnswer(status="ok", answer="42")
        yield solver_pb2.SolveEvent(answer=answer)


class Evaluation(evaluation_pb2_grpc.EvaluationServicer):
    """One job of two items."""

    async def CreateEvalJob(self, request: evaluation_pb2.CreateEvalJobRequest, context: Any) -> evaluation_pb2.EvalJob:
        if not request.dataset.strip():
            raise InvalidArgument("dataset", f"{request.dataset_name} has no readable line")
        return _job(request.dataset_name, done=0)

    async def WatchEvalJob(
        self, request: evaluation_pb2.WatchEvalJobRequest, context: Any
    ) -> AsyncIterator[evaluation_pb2.EvalEvent]:
        for done in (1, 2):
            yield evaluation_pb2.EvalEvent(event_id=done, job=_job("problems.jsonl", done))

    async def GetEvalJob(self, request: evaluation_pb2.GetEvalJobRequest, context: Any) -> evaluation_pb2.EvalJob:
        return _job("problems.jsonl", done=2)

    async def ListEvalJobs(
        self, request: evaluation_pb2.ListEvalJobsRequest, context: Any
    ) -> evaluation_pb2.ListEvalJobsResponse:
        return evaluation_pb2.ListEvalJobsResponse(jobs=[_job("problems.jsonl", done=2)])

    async def CancelEvalJob(self, request: evaluation_pb2.CancelEvalJobRequest, context: Any) -> evaluation_pb2.EvalJob:
        job = _job("problems.jsonl", done=1)
        job.state = evaluation_pb2.EVAL_STATE_CANCELLED
        return job

    async def ResumeEvalJob(self, request: evaluation_pb2.ResumeEvalJobRequest, context: Any) -> evaluation_pb2.EvalJob:
        return _job("problems.jsonl", done=1)

    async def ListEvalItems(
        self, request: evaluation_pb2.ListEvalItemsRequest, context: Any
    ) -> evaluation_pb2.ListEvalItemsResponse:
        if not request.page_token:
            item = evaluation_pb2.EvalItem(problem_id="p1", execution_id="aaaaaa11", success=True)
            return evaluation_pb2.ListEvalItemsResponse(items=[item], next_page_token="2")
        item = evaluation_pb2.EvalItem(problem_id="p2", execution_id="bbbbbb22", success=False)
        return evaluation_pb2.ListEvalItemsResponse(items=[item])


class Training(training_pb2_grpc.TrainingServicer):
    """Runs named after how they end; each breaks its watch once, to be resumed from the last event."""

    def __init__(self) -> None:
        self._broken: set[str] = set()

    async def CreateRun(self, request: training_pb2.CreateRunRequest, context: Any) -> training_pb2.Run:
        if "bad_key" in request.config:
            raise InvalidArgument.every([("bad_key", "unknown key"), ("steps", "is missing")])
        return _run(request.run_id or "r-1", committed=0)

    async def PlanRun(self, request: training_pb2.PlanRunRequest, context: Any) -> training_pb2.RunPlan:
        stage = training_pb2.StagePlan(stage=1, trains="executor", first_step=1, last_step=2)
        return training_pb2.RunPlan(steps=2, tasks=7, stages=[stage])

    async def ForkRun(self, request: training_pb2.ForkRunRequest, context: Any) -> training_pb2.Run:
        run = _run(request.run_id or "fork", committed=0)
        run.provenance.fork.parent_run_id, run.provenance.fork.step = request.parent_run_id, request.step
        run.provenance.fork.tasks_reason = "seed and tasks are those of the parent"
        return run

    async def PauseRun(self, request: training_pb2.PauseRunRequest, context: Any) -> training_pb2.Run:
        return training_pb2.Run(run_id=request.run_id, state=training_pb2.RUN_STATE_PAUSED, reason="paused by request")

    async def CancelRun(self, request: training_pb2.CancelRunRequest, context: Any) -> training_pb2.Run:
        return training_pb2.Run(run_id=request.run_id, state=training_pb2.RUN_STATE_CANCELLED)

    async def ResumeRun(self, request: training_pb2.ResumeRunRequest, context: Any) -> training_pb2.Run:
        return _run(request.run_id, committed=0)

    async def GetRun(self, request: training_pb2.GetRunRequest, context: Any) -> training_pb2.Run:
        return _run(request.run_id, committed=2)

    async def ListRuns(self, request: training_pb2.ListRunsRequest, context: Any) -> training_pb2.ListRunsResponse:
        if not request.page_token:
            return training_pb2.ListRunsResponse(runs=[_run("r-2", 1)], next_page_token="2")
        return training_pb2.ListRunsResponse(runs=[_run("r-1", 2)])

    async def WatchRun(
        self, request: training_pb2.WatchRunRequest, context: Any
    ) -> AsyncIterator[training_pb2.RunEvent]:
        progress = training_pb2.StepProgress(
            state=training_pb2.STEP_STATE_ROLLING, executions_done=3, executions_total=8
        )
        for event_id in range(request.after_event_id + 1, 3):
            yield training_pb2.RunEvent(event_id=event_id - 1, step=event_id, progress=progress)
            metrics = {
                "success": 0.25,
                "success_of_valid": 0.5,
                "reward_designer": 0.1,
                "reward_executor": 0.2,
                "valid_scripts": 0.75,
                "tokens_per_second": 4321.0,
                "seconds": 6.5,
            }
            committed = training_pb2.StepCommitted(stage=1, trains="executor", metrics=metrics)
            yield training_pb2.RunEvent(event_id=event_id, step=event_id, step_committed=committed)
            if request.run_id not in self._broken:
                self._broken.add(request.run_id)
                await context.abort(grpc.StatusCode.UNAVAILABLE, "connection lost")
        if request.run_id == "endless":
            await asyncio.sleep(600)

    async def GetExecution(
        self, request: training_pb2.GetExecutionRequest, context: Any
    ) -> training_pb2.ExecutionTrace:
        if not request.execution_id.startswith("aaaaaa"):
            raise NotFound("execution", request.execution_id)
        return training_pb2.ExecutionTrace(
            execution_id="aaaaaa11",
            run_id="r-1",
            step=2,
            task_id="t-9",
            question="What is 6 * 7?",
            script=SCRIPT,
            declared_pattern="single",
            executed_pattern="single",
            conversations=[
                training_pb2.TracedConversation(
                    conversation_id="c1",
                    agent="solver",
                    messages=[
                        common_pb2.ChatMessage(role=common_pb2.MESSAGE_ROLE_USER, content="What is 6 * 7?"),
                        common_pb2.ChatMessage(role=common_pb2.MESSAGE_ROLE_ASSISTANT, content="\\boxed{42}"),
                    ],
                    inserted_tokens=20,
                    generated_tokens=5,
                )
            ],
            status="ok",
            answer="42",
            reward=1.1,
            designer_reward=0.6,
            reward_terms=[training_pb2.RewardTerm(role=common_pb2.ROLE_EXECUTOR, name="success", value=1, weight=1)],
            executor_advantage=0.7,
            flags=["answer_in_script"],
        )


def _run(run_id: str, committed: int) -> training_pb2.Run:
    ends = training_pb2.RUN_STATE_FAILED if run_id == "fails" else training_pb2.RUN_STATE_SUCCEEDED
    reason = "the learner's disk is full; free 2 GiB and resume" if run_id == "fails" else ""
    return training_pb2.Run(
        run_id=run_id,
        state=ends if committed == 2 else training_pb2.RUN_STATE_RUNNING,
        reason=reason,
        committed_steps=committed,
        total_steps=2,
        folder=f"data/runs/{run_id}",
    )


def _job(name: str, done: int) -> evaluation_pb2.EvalJob:
    summary = evaluation_pb2.EvalSummary(
        success=0.5,
        success_low=0.25,
        success_high=0.75,
        valid_scripts=0.8,
        parseable=0.9,
        success_parseable=0.6,
        generated_tokens=12345,
        seconds=10,
        faults=1,
        groups=[
            evaluation_pb2.EvalGroup(
                family="calc",
                problems=1,
                success=0.5,
                patterns={"chain": 3, "single": 1},
                pattern_successes={"chain": 3},
            ),
            evaluation_pb2.EvalGroup(family="word", problems=1, success=0.5, patterns={"chain": 4}),
        ],
    )
    return evaluation_pb2.EvalJob(
        job_id="e-1",
        state=evaluation_pb2.EVAL_STATE_SUCCEEDED if done == 2 else evaluation_pb2.EVAL_STATE_RUNNING,
        dataset_name=name,
        problems=2,
        samples=1,
        items_done=done,
        items_total=2,
        dataset_errors=[evaluation_pb2.DatasetError(file=name, line=3, message="not JSON: Expecting value")],
        summary=summary if done == 2 else None,
    )
