"""The front between requests and ranks: what is current, under which name, and what a lost generation leaves.

Ranks are stand-ins, whose weights are the list of batches that they were trained on.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from troupe.v1 import learner_pb2
from troupe_contracts.batch import digest
from troupe_contracts.errors import FailedPrecondition, Unavailable
from troupe_learner import checkpoint as checkpoints
from troupe_learner import reads, supervisor
from troupe_learner.channel import Message
from troupe_learner.checkpoint_layout import MODEL, STATE
from troupe_learner.front import Front, State
from troupe_learner.gang import GenerationLost, Host, Progress, RankPlan
from troupe_learner.lineages import Lineages
from troupe_learner.local_ranks import LocalHost, OneHost
from troupe_learner.model_folder import open_model
from troupe_learner.operations import Event, Operation
from troupe_learner.optimization import Optimization
from troupe_learner.rank_plan import rank_plan
from troupe_learner.settings import LearnerSettings
from troupe_learner.weight_file import stored_tensors
from troupe_learner.work_folder import WorkFolder

STEP = Optimization(1e-3, 1, 0.2, 0.28, 1.0, 0.0, False, True)
MakeSequences = Callable[..., list[learner_pb2.Sequence]]


class Ranks:
    """One generation."""

    was_idle = True

    def __init__(self, weights: Path) -> None:
        self.description = {
            "tensors": [[each.spec.name, list(each.spec.shape)] for each in stored_tensors(weights)],
            "tied": False,
            "torch": "none",
            "threads": 1,
            "cores": [0],
        }
        self.trained: list[str] = []
        self.may_train = asyncio.Event()
        self.may_train.set()
        self._lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def run(self, command: Message, on_progress: Progress | None = None) -> Message:
        await asyncio.sleep(0)
        if self._lost.done():
            raise GenerationLost(self._lost.result())
        match command["command"]:
            case "train":
                waits = asyncio.create_task(self.may_train.wait())
                await asyncio.wait([waits, self._lost], return_when=asyncio.FIRST_COMPLETED)
                waits.cancel()
                if self._lost.done():
                    raise GenerationLost(self._lost.result())
                self.trained.append(Path(command["batch"]).stem)
                return {"metrics": {"loss": 1.0}}
            case "save":
                (Path(command["folder"]) / STATE / "trained.json").write_text(json.dumps(self.trained))
                (Path(command["folder"]) / MODEL / "weights").write_text("-")
            case "load":
                self.trained = json.loads((Path(command["folder"]) / STATE / "trained.json").read_text())
            case "reset":
                self.trained = []
        return {}

    def end(self) -> None:
        self._lost.set_result("killed by SIGKILL")

    async def lost(self) -> str:
        return await asyncio.shield(self._lost)

    async def close(self) -> None:
        pass


class Learner:
    """A front, its generations, and a run's calls."""

    def __init__(self, front: Front, generations: list[Ranks], sequences: MakeSequences) -> None:
        self.front = front
        self.generations = generations
        self._sequences = sequences

    @property
    def ranks(self) -> Ranks:
        return self.generations[-1]

    async def submitted(self, step: int) -> bytes:
        batch = self._sequences(4, seed=step)
        key = digest(batch)
        await asyncio.to_thread(self.front.batches.add, step, key, batch, self.front.model)
        return key

    async def train(self, step: int, run_id: str = "run") -> Event:
        return await ended(self.front.train(run_id, step, await self.submitted(step), STEP))

    async def loses_a_rank(self) -> None:
        count = len(self.generations)
        self.ranks.end()
        async with asyncio.timeout(20):
            while len(self.generations) == count or self.front.state is not State.READY:
                await asyncio.sleep(0.001)


async def ended(operation: Operation) -> Event:
    async with asyncio.timeout(20):
        return [event async for event in operation.follow(0)][-1]


def said(event: Event) -> str:
    assert event.failure is not None
    return f"{event.failure.code} {event.failure.message}"


@pytest.fixture
async def learner(
    tiny_model: Any, sequences: MakeSequences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Learner]:
    generations: list[Ranks] = []
    folder = tiny_model(False)

    async def launch(number: int, plan: RankPlan, hosts: Sequence[Host]) -> Ranks:
        generations.append(Ranks(folder / "model.safetensors"))
        return generations[-1]

    async def nothing() -> None:
        pass

    monkeypatch.setattr(supervisor, "launch", launch)
    settings = LearnerSettings(model=str(folder), work_dir=tmp_path / "work", lineage="first")
    work = WorkFolder.open(settings.work_dir)
    model = open_model(str(folder))
    plan = rank_plan(settings, model, work.ranks)
    front = Front(settings, model, work, Lineages(work.lineages), plan, OneHost(LocalHost(plan)), nothing)
    await front.open()
    await ended(front.bind_run("run", ""))
    yield Learner(front, generations, sequences)
    await front.close()
    work.lock.close()


async def test_a_lost_rank_leaves_the_last_checkpoint_under_a_new_lineage_and_a_replay_leads_back(
    learner: Learner, tmp_path: Path
) -> None:
    front = learner.front
    assert (await learner.train(1)).step is not None
    assert (await ended(front.save(str(tmp_path / "one"), "run", 1))).checkpoint is not None
    await learner.train(2)
    expected, before = list(learner.ranks.trained), front.ledger
    await learner.loses_a_rank()
    assert (front.ledger.run_id, front.ledger.applied_step) == ("run", 1)
    assert front.ledger.lineage != before.lineage
    assert learner.ranks.trained == expected[:1]
    await learner.train(2)
    assert learner.ranks.trained == expected
    assert [each.digest for each in front.ledger.steps] == [each.digest for each in before.steps]


@pytest.mark.parametrize("formed_before_it_is_published", [False, True])
async def test_a_rank_lost_while_a_checkpoint_is_published_starts_again_where_the_ledger_is(
    learner: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, formed_before_it_is_published: bool
) -> None:
    front, publish, launch = learner.front, checkpoints.Draft.publish, supervisor.launch
    written, may_publish, may_form = threading.Event(), threading.Event(), asyncio.Event()

    def published(draft: checkpoints.Draft, *record: Any) -> checkpoints.Checkpoint:
        written.set()
        assert may_publish.wait(20)
        return publish(draft, *record)

    async def launched(number: int, plan: RankPlan, hosts: Sequence[Host]) -> Any:
        await may_form.wait()
        return await launch(number, plan, hosts)

    await learner.train(1)
    await ended(front.save(str(tmp_path / "one"), "run", 1))
    await learner.train(2)
    expected = list(learner.ranks.trained)
    monkeypatch.setattr(checkpoints.Draft, "publish", published)
    monkeypatch.setattr(supervisor, "launch", launched)
    saving = front.save(str(tmp_path / "two"), "run", 2)
    await asyncio.to_thread(written.wait, 20)
    learner.ranks.end()
    async with asyncio.timeout(20):
        while front.ledger.applied_step != 1:
            await asyncio.sleep(0.001)
        for step in (may_form, may_publish) if formed_before_it_is_published else (may_publish, may_form):
            step.set()
            while step is may_form and len(learner.generations) == 1:
                await asyncio.sleep(0.001)
            if step is may_publish:
                # The checkpoint is whole, whatever became of those who wrote it.
                assert (await ended(saving)).checkpoint is not None
        while front.state is not State.READY:
            await asyncio.sleep(0.001)
    assert learner.ranks.trained == expected[: front.ledger.applied_step]
    await learner.train(2)
    assert (learner.ranks.trained, front.ledger.applied_step) == (expected, 2)
    # So, too, after the next loss.
    await learner.loses_a_rank()
    assert learner.ranks.trained == expected[: front.ledger.applied_step]


async def test_the_result_of_a_step_is_that_steps_whoever_is_lost_before_it_is_told(
    learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    front, forget = learner.front, learner.front.batches.forget_before
    forgets, may_forget = threading.Event(), threading.Event()

    def forgotten(step: int) -> None:
        forgets.set()
        assert may_forget.wait(20)
        forget(step)

    monkeypatch.setattr(front.batches, "forget_before", forgotten)
    key = await learner.submitted(1)
    operation = front.train("run", 1, key, STEP)
    await asyncio.to_thread(forgets.wait, 20)
    learner.ranks.end()
    async with asyncio.timeout(20):
        while len(learner.generations) == 1 or front.state is State.RESTARTING:
            await asyncio.sleep(0.001)
    may_forget.set()
    step = (await ended(operation)).step
    assert step is not None
    assert (step.step, step.digest) == (1, key)
    assert front.ledger.applied_step == 0, "it is replayed"


async def test_scores_are_by_the_ranks_that_had_the_version_which_they_name(
    learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    front, write = learner.front, reads.write_sequences
    writes, may_write = threading.Event(), threading.Event()

    def written(path: Path, sequences: Sequence[Sequence[int]]) -> None:
        writes.set()
        assert may_write.wait(20)
        write(path, sequences)

    monkeypatch.setattr(reads, "write_sequences", written)
    await learner.train(1)
    scoring = asyncio.create_task(front.score([[1, 2, 3]]))
    await asyncio.to_thread(writes.wait, 20)
    await learner.loses_a_rank()
    may_write.set()
    with pytest.raises(Unavailable, match="wait for READY, then call again"):
        await scoring


async def test_a_checkpoint_is_of_the_run_and_step_that_were_meant(learner: Learner, tmp_path: Path) -> None:
    front = learner.front
    await learner.train(1)
    for run_id, step in (("run", 0), ("run", 2), ("other", 1), ("", 0)):
        assert "step 1 of run 'run' is" in said(await ended(front.save(str(tmp_path / "none"), run_id, step)))
    assert list(tmp_path.glob("*none*")) == []


async def test_a_rank_lost_in_a_step_fails_the_step_and_nothing_of_it_is_recorded(learner: Learner) -> None:
    front = learner.front
    await learner.train(1)
    learner.ranks.may_train.clear()
    operation = front.train("run", 2, await learner.submitted(2), STEP)
    assert (front.state, front.operation) == (State.TRAINING, operation.name)
    assert front.train("run", 2, await learner.submitted(2), STEP) is operation
    with pytest.raises(FailedPrecondition, match="is under way"):
        front.save("/nowhere/at-all", "run", 1)
    await learner.loses_a_rank()
    failure = said(await ended(operation))
    assert failure.startswith("UNAVAILABLE")
    assert "replay" in failure
    assert (front.ledger.applied_step, front.operation, learner.ranks.trained) == (0, "", [])


async def test_a_run_that_begins_takes_the_learner_at_a_checkpoint_or_at_the_initial_weights(
    learner: Learner, tmp_path: Path
) -> None:
    front = learner.front
    await learner.train(1)
    await ended(front.save(str(tmp_path / "one"), "run", 1))
    trained = list(learner.ranks.trained)
    await learner.train(2)
    with pytest.raises(FailedPrecondition, match="holds this learner"):
        front.check_run("other")
    begun = await ended(front.bind_run("other", str(tmp_path / "one")))
    assert begun.checkpoint is not None
    assert (front.ledger.run_id, front.ledger.applied_step, learner.ranks.trained) == ("other", 0, trained)
    lineage = front.ledger.lineage
    again = await ended(front.bind_run("other", str(tmp_path / "one")))
    assert again.checkpoint == begun.checkpoint
    assert front.ledger.lineage == lineage
    await learner.loses_a_rank()
    assert (front.ledger.run_id, front.ledger.applied_step, learner.ranks.trained) == ("other", 0, trained)
    await ended(front.bind_run("third", ""))
    assert (front.ledger.run_id, learner.ranks.trained) == ("third", [])
    await ended(front.restore(str(tmp_path / "one")))
    assert (front.ledger.run_id, front.ledger.applied_step, learner.ranks.trained) == ("run", 1, trained)


async def test_a_base_that_is_gone_leaves_the_learner_at_the_initial_weights_and_to_no_run(
    learner: Learner, tmp_path: Path
) -> None:
    front = learner.front
    await learner.train(1)
    await ended(front.save(str(tmp_path / "one"), "run", 1))
    (tmp_path / "one" / STATE / "trained.json").write_text("[]")
    await learner.loses_a_rank()
    assert (front.ledger.run_id, front.ledger.applied_step, learner.ranks.trained) == ("", 0, [])
    assert "is not what was saved" in front.detail
    with pytest.raises(FailedPrecondition, match="begin it again with BindRun"):
        front.check_run("run")
    await ended(front.bind_run("run", ""))
    assert (await learner.train(1)).step is not None


async def test_operations_under_way_end_with_the_learner(learner: Learner) -> None:
    learner.ranks.may_train.clear()
    operation = learner.front.train("run", 1, await learner.submitted(1), STEP)
    await asyncio.sleep(0)
    await learner.front.close()
    assert "ended with the learner" in said(await ended(operation))
    learner.front._supervisor.generation = None
    with pytest.raises(Unavailable):
        learner.front.save("/nowhere/at-all", "run", 1)
