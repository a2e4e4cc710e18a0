"""Ranks count the updates of their weights: a front that is wrong about them cannot move them.

With real ranks; what the front believes is changed behind its back, as a defect of its own would.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from troupe.v1 import learner_pb2
from troupe_contracts.batch import digest
from troupe_learner.front import Front, State
from troupe_learner.ledger import Ledger
from troupe_learner.lineages import Lineages
from troupe_learner.local_ranks import LocalHost, OneHost
from troupe_learner.model_folder import open_model
from troupe_learner.operations import Event, Operation
from troupe_learner.optimization import Optimization
from troupe_learner.rank_plan import rank_plan
from troupe_learner.settings import LearnerSettings
from troupe_learner.work_folder import WorkFolder

STEP = Optimization(1e-2, 1, 0.2, 0.28, 1.0, 0.0, False, True)
Believes = Callable[[Ledger], Ledger]


@pytest.fixture
async def front(tiny_model: Any, tmp_path: Path) -> AsyncIterator[Front]:
    async def nothing() -> None:
        pass

    settings = LearnerSettings(model=str(tiny_model(False)), work_dir=tmp_path / "work")
    work, model = WorkFolder.open(settings.work_dir), open_model(settings.model)
    plan = rank_plan(settings, model, work.ranks)
    front = Front(settings, model, work, Lineages(work.lineages), plan, OneHost(LocalHost(plan)), nothing)
    await front.open()
    yield front
    await front.close()


async def ended(operation: Operation) -> Event:
    async with asyncio.timeout(60):
        return [event async for event in operation.follow(0)][-1]


async def train(front: Front, run_id: str, step: int, batch: list[learner_pb2.Sequence]) -> Event:
    key = digest(batch)
    await asyncio.to_thread(front.batches.add, step, key, batch, front.model)
    return await ended(front.train(run_id, step, key, STEP))


async def weights(front: Front) -> bytes:
    return (await front.export(None)).path.read_bytes()


def behind(ledger: Ledger) -> Ledger:
    return Ledger(ledger.run_id, ledger.lineage, ledger.steps[:-1])


def ahead(ledger: Ledger) -> Ledger:
    return ledger.with_step(b"\1" * 32, {})


@pytest.mark.parametrize("begins_at_a_checkpoint", [False, True])
@pytest.mark.parametrize("believes", [behind, ahead])
async def test_a_step_that_is_not_the_next_of_the_weights_moves_nothing_and_the_learner_goes_on_where_its_ledger_is(
    front: Front,
    believes: Believes,
    begins_at_a_checkpoint: bool,
    sequences: Callable[..., list[learner_pb2.Sequence]],
    tmp_path: Path,
) -> None:
    run_id, base = "first", ""
    batches = [sequences(4, seed=step) for step in range(4)]
    assert (await ended(front.bind_run(run_id, ""))).failure is None
    if begins_at_a_checkpoint:
        assert (await train(front, run_id, 1, batches[0])).failure is None
        base = str(tmp_path / "base")
        assert (await ended(front.save(base, run_id, 1))).failure is None
        run_id = "second"
        assert (await ended(front.bind_run(run_id, base))).failure is None
    assert (await train(front, run_id, 1, batches[1])).failure is None
    assert (await ended(front.save(str(tmp_path / "one"), run_id, 1))).failure is None
    after_one = await weights(front)
    assert (await train(front, run_id, 2, batches[2])).failure is None
    after_two = await weights(front)

    front._standing.ledger = believes(front.ledger)
    wrong = front.ledger.applied_step + 1
    failure = (await train(front, run_id, wrong, batches[3])).failure
    assert failure is not None
    assert f"step {wrong} is not the next of these weights, which have had 2 updates" in failure.message
    async with asyncio.timeout(60):
        while front.state is not State.READY:
            await asyncio.sleep(0.01)
    assert (front.ledger.run_id, front.ledger.applied_step) == (run_id, 1)
    assert await weights(front) == after_one
    assert (await train(front, run_id, 2, batches[2])).failure is None
    assert await weights(front) == after_two
