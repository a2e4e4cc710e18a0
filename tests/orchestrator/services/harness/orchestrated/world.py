"""One orchestrator with its stand-ins, served and called over gRPC."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
import yaml
from google.rpc import error_details_pb2, status_pb2
from troupe.v1 import (
    designer_pb2_grpc,
    evaluation_pb2,
    evaluation_pb2_grpc,
    learner_pb2_grpc,
    policy_pb2_grpc,
    solver_pb2_grpc,
    training_pb2,
    training_pb2_grpc,
)
from troupe_contracts.channel import connect
from troupe_contracts.server import Running, start
from troupe_contracts.settings import ServiceSettings
from troupe_orchestrator.app import SERVICE_NAMES, orchestrator
from troupe_orchestrator.settings import OrchestratorSettings

from orchestrated.learner import StandInLearner
from orchestrated.models import POLICY_ID, StandInDesigner, StandInPolicy, Weights


@dataclass
class Backends:
    """The stand-ins, all behind one target."""

    policy: StandInPolicy
    designer: StandInDesigner
    learner: StandInLearner
    running: Running | None = None
    on_call: Callable[[str], None] = field(default=lambda moment: None)
    """Called before and after each call that changes something: `before TrainStep`, `after TrainStep`."""

    @property
    def target(self) -> str:
        return "" if self.running is None else self.running.target

    async def stop(self) -> None:
        """Nobody serves any more."""
        if self.running is not None:
            await self.running.drain(0)


@dataclass
class World:
    """A served orchestrator."""

    folder: Path
    backends: Backends
    training: training_pb2_grpc.TrainingAsyncStub
    evaluation: evaluation_pb2_grpc.EvaluationAsyncStub
    solver: solver_pb2_grpc.SolverAsyncStub
    target: str

    async def evaluate(self, *rows: dict[str, object] | str, **fields: object) -> evaluation_pb2.EvalJob:
        """Creates a job over these lines and waits for its end."""
        job = await self.evaluation.CreateEvalJob(eval_request(*rows, **fields))
        await self.watched(job.job_id)
        return await self.evaluation.GetEvalJob(evaluation_pb2.GetEvalJobRequest(job_id=job.job_id))

    async def watched(self, job_id: str, after: int = 0) -> list[evaluation_pb2.EvalEvent]:
        request = evaluation_pb2.WatchEvalJobRequest(job_id=job_id, after_event_id=after)
        return [event async for event in self.evaluation.WatchEvalJob(request, timeout=60)]

    async def items(self, job_id: str) -> list[evaluation_pb2.EvalItem]:
        return list((await self.evaluation.ListEvalItems(evaluation_pb2.ListEvalItemsRequest(job_id=job_id))).items)

    async def judged(
        self, row: dict[str, object], script: object
    ) -> tuple[evaluation_pb2.EvalItem, training_pb2.ExecutionTrace]:
        """One execution of one script, through an eval job: its item and its trace."""
        self.backends.designer.scripts[str(row["question"])] = [script]  # type: ignore[list-item]
        job = await self.evaluate(row)
        assert job.state == evaluation_pb2.EVAL_STATE_SUCCEEDED, job.reason
        (item,) = await self.items(job.job_id)
        if not item.execution_id:
            return item, training_pb2.ExecutionTrace()
        request = training_pb2.GetExecutionRequest(execution_id=item.execution_id)
        return item, await self.training.GetExecution(request)

    async def run(self, config: str, run_id: str = "run") -> list[training_pb2.RunEvent]:
        """Creates a run and watches it to its end or stop."""
        await self.training.CreateRun(training_pb2.CreateRunRequest(run_id=run_id, config=config))
        return await self.run_events(run_id)

    async def run_events(self, run_id: str = "run", after: int = 0) -> list[training_pb2.RunEvent]:
        request = training_pb2.WatchRunRequest(run_id=run_id, after_event_id=after)
        return [
            event
            async for event in self.training.WatchRun(request, timeout=60)
            if event.WhichOneof("event") != "progress"
        ]

    async def get_run(self, run_id: str = "run") -> training_pb2.Run:
        return await self.training.GetRun(training_pb2.GetRunRequest(run_id=run_id))

    def config(self, rows: Sequence[dict[str, object]], **changes: object) -> str:
        """A run's YAML over these tasks."""
        return run_config(self.folder, rows, **changes)


@contextlib.asynccontextmanager
async def backends(policy_id: str = POLICY_ID) -> AsyncIterator[Backends]:
    """Stand-ins for designer, executor and learner, served."""
    weights = Weights()
    parts = Backends(StandInPolicy(weights, policy_id), StandInDesigner(weights), StandInLearner(policy_id))
    for name in ("SubmitBatch", "TrainStep", "SaveCheckpoint", "RestoreCheckpoint"):
        _tell(parts, parts.learner, name)
    for name in ("Generate", "BeginUpdate", "CommitUpdate"):
        _tell(parts, parts.policy, name)

    def register(server: grpc.aio.Server) -> None:
        policy_pb2_grpc.add_PolicyServicer_to_server(parts.policy, server)
        designer_pb2_grpc.add_DesignerServicer_to_server(parts.designer, server)
        learner_pb2_grpc.add_LearnerServicer_to_server(parts.learner, server)

    names = [f"troupe.v1.{name}" for name in ("Policy", "Designer", "Learner")]
    parts.running = await start(ServiceSettings(), register, names)
    yield parts
    await parts.stop()


def _tell(parts: Backends, servicer: object, name: str) -> None:
    """Have a method tell when it is called and when it answers."""
    method = getattr(servicer, name)

    async def told(request: object, context: object) -> object:
        parts.on_call(f"before {name}")
        response = await method(request, context)
        parts.on_call(f"after {name}")
        return response

    setattr(servicer, name, told)


@contextlib.asynccontextmanager
async def world(
    folder: Path, parts: Backends | None, sandbox: str = "", learner: bool = False, **settings: object
) -> AsyncIterator[World]:
    """An orchestrator on the store in `folder`; without stand-ins one that shows records."""
    folder.mkdir(exist_ok=True)
    # Who is away in a test stays away.
    engines: dict[str, object] = {"patience_seconds": 0.0}
    if parts is not None:
        engines |= {"designer": parts.target, "executor": parts.target, "sandbox": sandbox}
        engines["learner"] = parts.target if learner else ""
        serving = folder / "serving.yaml"
        serving.write_text(yaml.safe_dump({"max_attempts": 2, "budgets": {"cpu_seconds": 1.0}}))
        engines["serving"] = serving
    async with (
        orchestrator(OrchestratorSettings(data_dir=folder / "data", **(engines | settings))) as parts_served,  # type: ignore[arg-type]
        contextlib.AsyncExitStack() as stack,
    ):
        running = await start(ServiceSettings(), parts_served.register, SERVICE_NAMES)
        stack.push_async_callback(running.drain, 0)
        channel = await stack.enter_async_context(connect(running.target))
        yield World(
            folder,
            parts if parts is not None else Backends(*_nobody()),
            training_pb2_grpc.TrainingStub(channel),
            evaluation_pb2_grpc.EvaluationStub(channel),
            solver_pb2_grpc.SolverStub(channel),
            running.target,
        )


def _nobody() -> tuple[StandInPolicy, StandInDesigner, StandInLearner]:
    weights = Weights()
    return StandInPolicy(weights), StandInDesigner(weights), StandInLearner()


def run_config(folder: Path, rows: Sequence[dict[str, object]], **changes: object) -> str:
    """A run's YAML over these tasks: two steps of two tasks, two designs, one execution."""
    file = folder / "train.jsonl"
    file.write_text(lines(*rows))
    config: dict[str, object] = {
        "dataset": {"train": str(file)},
        "steps": 2,
        "stages": [{"train": "both", "steps": 2}],
        "rollout": {"tasks_per_step": 2, "designs": 2, "executions": 1, "max_attempts": 2},
        "sampling": {"designer": {"max_tokens": 64}, "executor": {"max_tokens": 64}},
    }
    return yaml.safe_dump(config | changes)


def math_task(name: str, **fields: object) -> dict[str, object]:
    return {"id": name, "task_type": "math", "question": f"What is 6 * 7? ({name})", "answer": "42", **fields}


def lines(*rows: dict[str, object] | str) -> str:
    return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)


def eval_request(*rows: dict[str, object] | str, **fields: object) -> evaluation_pb2.CreateEvalJobRequest:
    return evaluation_pb2.CreateEvalJobRequest(
        **{"dataset_name": "held.jsonl", "dataset": lines(*rows).encode(), "samples": 1, **fields}  # type: ignore[arg-type]
    )


@contextlib.contextmanager
def refused(code: str, *fragments: str, field: str = "") -> object:  # type: ignore[misc]
    """The call inside fails with this code, and says each fragment; a wrong field is named as such."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        yield
    error = raised.value
    assert error.code().name == code, error
    assert [part for part in fragments if part not in (error.details() or "")] == [], error.details()
    if field:
        assert field in violations(error)


def violations(error: grpc.aio.AioRpcError) -> list[str]:
    """Fields that an INVALID_ARGUMENT names, with repetitions."""
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    request = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(request)
    return [violation.field for violation in request.field_violations]
