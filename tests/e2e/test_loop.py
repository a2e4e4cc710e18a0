"""Two steps of training through the real engine, learner and sandbox; the orchestrator is killed between them."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from troupe.v1 import learner_pb2, learner_pb2_grpc, policy_pb2, policy_pb2_grpc, training_pb2
from troupe_client.sdk import Client
from troupe_contracts.channel import connect

if TYPE_CHECKING:
    from conftest import Stack

pytestmark = pytest.mark.timeout(420)


def run_config(starter: Path, **changes: object) -> str:
    config = yaml.safe_load((starter / "run.yaml").read_text())
    config["dataset"]["train"] = str(starter / "train.jsonl")
    config |= {
        "steps": 2,
        "stages": [{"train": "both", "steps": 2}],
        "rollout": {"tasks_per_step": 4, "designs": 4, "executions": 2},
        "checkpoint": {"every": 1, "keep": 2},
    }
    return yaml.safe_dump(config | changes)


def steps(state: Path) -> list[tuple[int, str, str, str]]:
    """(step, state, task ids, digest of the batch) as the store has them."""
    with sqlite3.connect(state / "data" / "troupe.db") as connection:
        return connection.execute(
            "select step, state, task_ids, digest from steps join batches using (run_id, step) order by step"
        ).fetchall()


async def watch_until_committed(target: str, run_id: str, step: int) -> None:
    async with Client(target) as client:
        async for event in client.watch_run(run_id):
            if event.WhichOneof("event") == "step_committed" and event.step == step:
                return
    pytest.fail(f"run {run_id} ended before step {step} was committed")


async def ended(target: str, run_id: str) -> training_pb2.Run:
    async with Client(target) as client:
        async for _ in client.watch_run(run_id):
            pass
        return await client.get_run(run_id)


async def learner_state(stack: Stack) -> learner_pb2.LearnerInfo:
    async with connect(stack.target("learner")) as channel:
        return await learner_pb2_grpc.LearnerStub(channel).GetLearner(learner_pb2.GetLearnerRequest())


async def engine_state(stack: Stack) -> policy_pb2.PolicyInfo:
    async with connect(stack.target("executor")) as channel:
        return await policy_pb2_grpc.PolicyStub(channel).GetPolicy(policy_pb2.GetPolicyRequest())


async def test_a_run_killed_between_its_steps_ends_with_each_step_committed_and_applied_once(
    stack: Stack, starter: Path, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    async with Client(stack.target("orchestrator")) as client:
        run = await client.create_run(run_config(starter), "killed")
    await watch_until_committed(stack.target("orchestrator"), run.run_id, 1)
    stack.kill("orchestrator")
    before = steps(state)
    stack.start("orchestrator")
    run = await ended(stack.target("orchestrator"), run.run_id)

    assert run.state == training_pb2.RUN_STATE_SUCCEEDED, run.reason
    after = steps(state)
    assert [(step, status) for step, status, _, _ in after] == [(1, "committed"), (2, "committed")]
    assert after[0] == (*before[0][:1], "committed", *before[0][2:])
    learner = await learner_state(stack)
    assert [(applied.step, applied.digest.hex()) for applied in learner.applied_steps] == [
        (step, digest) for step, _, _, digest in after
    ]
    assert (await engine_state(stack)).version == learner.version
    assert learner.version.number == 2
