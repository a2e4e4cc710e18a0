"""Runs whose designer and executor have weights of their own, of which the orchestrator and either learner are lost again
and again: each policy is trained on its own batches, each once and in order, and its engine has its learner's weights.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from orchestrated.child import Child, child
from orchestrated.world import Backends, backends, math_task, run_config, world
from troupe.v1 import learner_pb2, training_pb2

pytestmark = pytest.mark.asyncio(loop_scope="session")

TASKS = [math_task(f"task-{number}") for number in range(5)]
# Steps 1, 2, 5 and 6 train the executor, 3 and 4 the designer.
SHAPE = {
    "steps": 6,
    "stages": [{"train": "executor", "steps": 2}, {"train": "designer", "steps": 2}],
    "checkpoint": {"every": 2, "keep": 10},
}
MOST_KILLS = 8
Content = list[list[tuple[object, ...]]]


@pytest_asyncio.fixture(loop_scope="session")
async def designers() -> AsyncIterator[Backends]:
    """The designer's own engine and learner."""
    async with backends("drafting") as parts:
        yield parts


def content(sequence: learner_pb2.Sequence) -> tuple[object, ...]:
    return (sequence.id, tuple(sequence.token_ids), tuple(sequence.weights), tuple(sequence.advantages))


class Trained:
    """What each learner was given, by digest, also what it has lost since."""

    def __init__(self, parts: Backends) -> None:
        self.parts = parts
        self.batches: dict[bytes, list[learner_pb2.Sequence]] = {}

    def note(self) -> None:
        self.batches |= self.parts.learner.batches

    def applied(self) -> Content:
        self.note()
        return [[content(each) for each in self.batches[step.digest]] for step in self.parts.learner.applied]


async def undisturbed(folder: Path, sandbox: str, config: str) -> list[Content]:
    """What a run without a fault trains, executor and designer."""
    async with backends() as one, backends("drafting") as other:
        both = {"designer": other.target, "designer_learner": other.target}
        async with world(folder, one, sandbox, learner=True, **both) as quiet:
            await quiet.run(config)
            run = await quiet.get_run()
        assert run.state == training_pb2.RUN_STATE_SUCCEEDED, run.reason
        return [Trained(one).applied(), Trained(other).applied()]


class Chaos:
    """Kills the orchestrator at moments that chance chooses, and has learners start anew."""

    def __init__(self, seed: int, learners: list[Trained]) -> None:
        self.chance = random.Random(seed)
        self.learners = learners
        self.orchestrator: Child | None = None
        self.moments: list[str] = []
        for trained in learners:
            trained.parts.on_call = self.at

    def at(self, moment: str) -> None:
        for trained in self.learners:
            trained.note()
        often = 0.01 if moment.endswith("Generate") else 0.12
        if self.orchestrator is None or len(self.moments) == MOST_KILLS or self.chance.random() > often:
            return
        self.moments.append(moment)
        if moment == "before SubmitBatch" and self.chance.random() < 0.5:
            # The learner alone: the orchestrator finds it without what it trained.
            self.chance.choice(self.learners).parts.learner.lose()
            return
        self.orchestrator.kill()
        self.orchestrator = None


async def ended(orchestrator: Child) -> bool:
    """Watches the run; false if the orchestrator is gone before."""
    try:
        async for _ in orchestrator.training.WatchRun(training_pb2.WatchRunRequest(run_id="run"), timeout=120):
            pass
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return False
    return True


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 6))])
async def test_each_policy_is_trained_on_its_own_batches_each_once(
    tmp_path: Path, stand_ins: Backends, designers: Backends, sandbox: str, seed: int
) -> None:
    config = run_config(tmp_path, TASKS, **SHAPE)
    expected = await undisturbed(tmp_path / "undisturbed", sandbox, config)
    assert [len(each) for each in expected] == [4, 2]
    learners = [Trained(stand_ins), Trained(designers)]
    chaos = Chaos(seed, learners)
    request = training_pb2.CreateRunRequest(run_id="run", config=config)
    while True:
        async with child(tmp_path / "killed", stand_ins, sandbox, learner=True, designers=designers) as orchestrator:
            chaos.orchestrator = orchestrator
            try:
                await orchestrator.training.CreateRun(request)
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.UNAVAILABLE):
                    raise
            if await ended(orchestrator):
                run = await orchestrator.training.GetRun(training_pb2.GetRunRequest(run_id="run"))
                break
        # What is lost after the last sync no sync brings back to the engines.
        if chaos.chance.random() < 0.5 and sum(len(each.parts.learner.applied) for each in learners) < SHAPE["steps"]:
            chaos.chance.choice(learners).parts.learner.lose()
            chaos.moments.append("lost")
    assert run.state == training_pb2.RUN_STATE_SUCCEEDED, (run.reason, chaos.moments)
    assert run.committed_steps == 6
    assert chaos.moments, "nothing was disturbed"
    assert [trained.applied() for trained in learners] == expected, chaos.moments
    for trained in learners:
        assert trained.parts.policy.weights.version == trained.parts.learner.version, chaos.moments
