"""Who listens to a run's events is told each that is stored, once, also where the store did not answer."""

import pytest
from troupe.v1 import training_pb2
from troupe_orchestrator.stages import StepPlan
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.run_events import write_events
from troupe_orchestrator.store.runs import RunRecord, RunState, create_run
from troupe_orchestrator.training.events import EventLog

RUN = RunRecord("run", RunState.RUNNING, "", "config", 3, "/nowhere", 1.0, None)


class Listener:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, str]] = []

    def rolls(self, run_id: str, plan: StepPlan) -> None:
        pass

    def stored(self, run_id: str, event: training_pb2.RunEvent) -> None:
        self.told.append((event.event_id, event.condition.reason))


def condition(reason: str) -> training_pb2.Condition:
    return training_pb2.Condition(reason=reason)


@pytest.mark.parametrize(
    ("stored", "told"),
    [(True, [(1, "One"), (2, "Two"), (3, "Three")]), (False, [(1, "Three")])],
    ids=["stored", "undone"],
)
async def test_events_whose_commit_is_not_answered_are_told_if_they_are_in_the_store(
    database: Database, stored: bool, told: list[tuple[int, str]]
) -> None:
    await create_run(database, RUN, {})
    listener = Listener()
    events = await EventLog.open(database, RUN.run_id, listener)
    with pytest.raises(ConnectionError):  # noqa: PT012
        async with events.storing(1, condition("One"), condition("Two")) as numbered:
            if stored:
                async with database.writing() as connection:
                    await write_events(connection, RUN.run_id, numbered)
            raise ConnectionError
    assert listener.told == []
    await events.append(1, condition("Three"))
    assert listener.told == told
    await events.end()
    assert [(event.event_id, event.condition.reason) async for event in events.watch(0)] == told
