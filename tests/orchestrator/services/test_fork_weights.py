"""A fork with a real learner on one rank: its weights are those that its parent came to, bit for bit."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import yaml
from orchestrated.models import POLICY_ID
from orchestrated.sandbox import StandInSandbox
from orchestrated.world import Backends, lines, math_task
from troupe.v1 import learner_pb2, learner_pb2_grpc, sandbox_pb2_grpc, training_pb2, training_pb2_grpc
from troupe_contracts.channel import connect
from troupe_contracts.server import start
from troupe_contracts.settings import ServiceSettings
from troupe_orchestrator.app import SERVICE_NAMES, orchestrator
from troupe_orchestrator.settings import OrchestratorSettings

pytestmark = [pytest.mark.long, pytest.mark.asyncio(loop_scope="session")]


async def test_a_fork_with_the_same_plan_has_its_parents_weights_and_moments_bit_for_bit(
    tmp_path: Path, stand_ins: Backends, tiny_model, start_service
) -> None:
    settings = {
        "TROUPE_MODEL": str(tiny_model(False)),
        "TROUPE_POLICY_ID": POLICY_ID,
        "TROUPE_WORK_DIR": str(tmp_path / "learner"),
    }
    learner = start_service("learner", ["-m", "troupe_learner"], settings)
    service = await asyncio.to_thread(learner)
    await _as_the_learner_says(stand_ins, service.target)
    (tmp_path / "train.jsonl").write_text(lines(*(math_task(f"task-{number}") for number in range(4))))
    config = {
        "dataset": {"train": str(tmp_path / "train.jsonl")},
        "steps": 4,
        "stages": [{"train": "executor", "steps": 1}, {"train": "designer", "steps": 2}],
        "rollout": {"tasks_per_step": 2, "designs": 2, "executions": 2},
        "optimization": {"learning_rate": 0.01, "mini_batches": 2},
        "checkpoint": {"every": 1, "keep": 10},
        "conditions": {"mismatch_kl_above": None},
    }
    async with _served(tmp_path, stand_ins, service.target) as training:
        parent = await _ended(
            training, await training.CreateRun(training_pb2.CreateRunRequest(config=yaml.safe_dump(config)))
        )
        fork = await _ended(
            training, await training.ForkRun(training_pb2.ForkRunRequest(parent_run_id=parent.run_id, step=2))
        )
    for step in (3, 4):
        assert _state(fork, step) == _state(parent, step)
    assert _state(parent, 3) != _state(parent, 4)


async def _as_the_learner_says(stand_ins: Backends, target: str) -> None:
    """Have the stand-in for the engine serve the learner's policy."""
    async with connect(target) as channel:
        stub: learner_pb2_grpc.LearnerAsyncStub = learner_pb2_grpc.LearnerStub(channel)
        async with asyncio.timeout(240):
            while (
                state := await stub.GetLearner(learner_pb2.GetLearnerRequest())
            ).state != learner_pb2.GANG_STATE_READY:
                await asyncio.sleep(0.1)
    weights = stand_ins.policy.weights
    weights.tokenizer_digest, weights.architecture_digest = state.tokenizer_digest, state.architecture_digest
    weights.chat_template_digest, weights.version = state.chat_template_digest, state.version


@contextlib.asynccontextmanager
async def _served(
    folder: Path, stand_ins: Backends, learner: str
) -> AsyncIterator[training_pb2_grpc.TrainingAsyncStub]:
    sandbox = StandInSandbox()

    def register(server: grpc.aio.Server) -> None:
        sandbox_pb2_grpc.add_SandboxServicer_to_server(sandbox, server)

    async with contextlib.AsyncExitStack() as stack:
        running = await start(ServiceSettings(), register, ["troupe.v1.Sandbox"])
        stack.push_async_callback(running.drain, 0)
        settings = OrchestratorSettings(
            data_dir=folder / "data",
            designer=stand_ins.target,
            executor=stand_ins.target,
            sandbox=running.target,
            learner=learner,
        )
        served = await stack.enter_async_context(orchestrator(settings))
        front = await start(ServiceSettings(), served.register, SERVICE_NAMES)
        stack.push_async_callback(front.drain, 0)
        channel = await stack.enter_async_context(connect(front.target))
        yield training_pb2_grpc.TrainingStub(channel)


async def _ended(training: training_pb2_grpc.TrainingAsyncStub, run: training_pb2.Run) -> training_pb2.Run:
    async for _ in training.WatchRun(training_pb2.WatchRunRequest(run_id=run.run_id), timeout=240):
        pass
    run = await training.GetRun(training_pb2.GetRunRequest(run_id=run.run_id))
    assert run.state == training_pb2.RUN_STATE_SUCCEEDED, run.reason
    return run


def _state(run: training_pb2.Run, step: int) -> dict[str, str]:
    """SHA-256 of weights and optimizer in the run's checkpoint of a step."""
    (folder,) = [Path(saved.uris[POLICY_ID]) for saved in run.checkpoints if saved.step == step]
    files = sorted(folder.rglob("*.safetensors"))
    assert len(files) == 2
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
