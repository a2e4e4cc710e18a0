"""Changes of a run whose commit is not answered, be they in the store or not: the run goes on as if they had been."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from orchestrated.models import SINGLE
from orchestrated.world import Backends, lines, math_task, refused
from troupe.v1 import training_pb2
from troupe_orchestrator.store.database import Database, StoreUnavailableError
from troupe_orchestrator.store.outages import Outage
from troupe_orchestrator.store.runs import set_run_state
from troupe_orchestrator.store.steps import StepRecord, StepState, advance_step
from troupe_orchestrator.training import endurance, rolling, run_loop, run_records, serving

pytestmark = pytest.mark.asyncio(loop_scope="session")

TASKS = [math_task(f"task-{number}") for number in range(5)]
STORED = pytest.mark.parametrize("stored", [True, False], ids=["stored", "undone"])


class Unanswered:
    """Stands in for `advance_step`: the first commit of each transition of each step is not answered."""

    def __init__(self, stored: bool) -> None:
        self._stored = stored
        self._lost: set[tuple[int, StepState]] = set()

    async def __call__(self, database: Database, record: StepRecord, state: StepState, *rest: object) -> None:
        lost = (record.step, state) not in self._lost
        if not lost or self._stored:
            await advance_step(database, record, state, *rest)  # type: ignore[arg-type]
        if lost:
            self._lost.add((record.step, state))
            raise StoreUnavailableError("sqlite", Outage("was reset", "wait"), ConnectionError("reset"), True)


@pytest.fixture
def _unanswered(monkeypatch: pytest.MonkeyPatch, stored: bool) -> None:
    stand_in = Unanswered(stored)
    for module in (rolling, run_loop, serving):
        monkeypatch.setattr(module, "advance_step", stand_in)
    monkeypatch.setattr(endurance, "_FIRST_PAUSE_SECONDS", 0.01)


def plan_of(events: list[training_pb2.RunEvent]) -> list[tuple[int, int, str]]:
    """(step, stage, trained role) of each step that was told."""
    committed = [(event.step, event.step_committed) for event in events if event.HasField("step_committed")]
    return [(step, told.stage, told.trains) for step, told in committed]


def conditions(events: list[training_pb2.RunEvent]) -> Counter[str]:
    return Counter(event.condition.reason for event in events if event.HasField("condition"))


def told_once(events: list[training_pb2.RunEvent], steps: int) -> None:
    """Each step is told once, in order, and no event is missing."""
    assert [event.step for event in events if event.HasField("step_committed")] == list(range(1, steps + 1))
    assert [event.event_id for event in events] == list(range(1, len(events) + 1))


@STORED
@pytest.mark.usefixtures("_unanswered")
async def test_stages_end_with_the_steps_that_ended_them(open_world) -> None:
    async with open_world(learner=True, patience_seconds=20.0) as world:
        held = world.folder / "held.jsonl"
        held.write_text(lines(math_task("held-0")))
        # No validation is better than the first: each stage ends with its second step.
        until = {"window": 1, "min_steps": 1, "min_improvement": 0.0}
        config = world.config(
            TASKS,
            steps=5,
            stages=[{"train": role, "steps": 5, "until": until} for role in ("executor", "designer")],
            validation={"dataset": str(held), "every": 1},
        )
        events = await world.run(config)
        assert (await world.get_run()).state == training_pb2.RUN_STATE_SUCCEEDED
        assert plan_of(events) == [
            (1, 1, "executor"),
            (2, 1, "executor"),
            (3, 2, "designer"),
            (4, 2, "designer"),
            (5, 3, "executor"),
        ]
        told_once(events, 5)
        applied = world.backends.learner.applied
        assert [each.step for each in applied] == [1, 2, 3, 4, 5]
        digests = [event.step_committed.digest for event in events if event.HasField("step_committed")]
        assert [each.digest for each in applied] == digests
        # Of each step the outages of its four transitions, whatever failed in the step before.
        assert conditions(events) == {"StagePlateau": 2, "StoreUnavailable": 5 * 4}


@STORED
@pytest.mark.usefixtures("_unanswered")
async def test_a_condition_pauses_the_run_after_its_step_and_is_told_once(open_world, stand_ins: Backends) -> None:
    stand_ins.designer.otherwise = [SINGLE]  # every design is right: no group has variance
    async with open_world(learner=True, patience_seconds=20.0) as world:
        config = world.config(
            TASKS,
            steps=4,
            stages=[{"train": "both", "steps": 4}],
            conditions={"window": 2, "zero_variance_above": 0.5, "repeat_after": 2},
        )
        for paused_after in (2, 4):
            if paused_after == 2:
                events = await world.run(config)
            else:
                await world.training.ResumeRun(training_pb2.ResumeRunRequest(run_id="run"))
                events = await world.run_events()
            run = await world.get_run()
            assert (run.committed_steps, conditions(events)["NoVariance"]) == (paused_after, paused_after // 2)
        assert run.state == training_pb2.RUN_STATE_SUCCEEDED, "nothing follows the last step"
        told_once(events, 4)


async def test_who_watches_a_queued_run_is_told_that_it_is_cancelled(open_world, monkeypatch) -> None:
    async def unanswered(*arguments: Any) -> None:
        await set_run_state(*arguments)
        raise StoreUnavailableError("sqlite", Outage("was reset", "wait"), ConnectionError("reset"), True)

    async with open_world(learner=True) as world:
        long = {"steps": 60, "stages": [{"train": "both", "steps": 1}]}
        create = training_pb2.CreateRunRequest
        await world.training.CreateRun(create(run_id="one", config=world.config(TASKS, **long)))
        await world.training.CreateRun(create(run_id="two", config=world.config(TASKS), queue=True))
        watching = asyncio.create_task(world.run_events("two"))
        with monkeypatch.context() as patched:
            patched.setattr(run_records, "set_run_state", unanswered)
            with refused("UNAVAILABLE", "was reset"):
                await world.training.CancelRun(training_pb2.CancelRunRequest(run_id="two"))
        (event,) = await watching
        assert event.state_changed.state == training_pb2.RUN_STATE_CANCELLED
        assert (await world.get_run("one")).state == training_pb2.RUN_STATE_RUNNING
        await world.training.CancelRun(training_pb2.CancelRunRequest(run_id="one"))
