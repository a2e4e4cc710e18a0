"""New generations of a learner's ranks, in the events of the run."""

from pathlib import Path

import pytest
from troupe.v1 import learner_pb2, training_pb2
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.run_events import newest_events
from troupe_orchestrator.store.runs import RunRecord, RunState, create_run
from troupe_orchestrator.training.events import EventLog
from troupe_orchestrator.training.generations import Generations

RUN = RunRecord("run", RunState.RUNNING, "", "config", 3, "/nowhere", 1.0, None)
KILLED = "rank 1 on node-2 ended: killed"


def seen(generation: int, policy: str = "p", detail: str = "") -> learner_pb2.LearnerInfo:
    return learner_pb2.LearnerInfo(policy_id=policy, generation=generation, detail=detail)


def formed(now: int, before: int, policy: str = "p", why: str = "") -> str:
    return f"the learner of policy {policy} formed generation {now} of its ranks, after {before}{why}"


@pytest.mark.parametrize(
    ("looks", "told"),
    [
        ([seen(1), seen(1), seen(1)], []),
        # Whatever it was before this orchestrator looked is nothing new.
        ([seen(7), seen(7)], []),
        ([seen(1), seen(2, detail=KILLED), seen(2, detail=KILLED)], [formed(2, 1, why=f": {KILLED}")]),
        ([seen(1), seen(4), seen(5)], [formed(4, 1), formed(5, 4)]),
        # A process that started again, and then lost a rank.
        ([seen(3), seen(1), seen(2)], [formed(2, 1)]),
        ([seen(1), seen(2, "other"), seen(1), seen(3, "other")], [formed(3, 2, "other")]),
        # One that does not tell.
        ([seen(0), seen(0), seen(1)], []),
    ],
)
async def test_each_new_generation_is_told_once_with_the_one_before_it(
    tmp_path: Path, looks: list[learner_pb2.LearnerInfo], told: list[str]
) -> None:
    database = await Database.open(f"sqlite:///{tmp_path}/troupe.db", 30.0)
    try:
        await create_run(database, RUN, {})
        generations = Generations(await EventLog.open(database, RUN.run_id))
        for step, learner in enumerate(looks):
            await generations.look(learner, step)
        events = [training_pb2.RunEvent.FromString(each) for each in await newest_events(database, RUN.run_id, 10)]
    finally:
        await database.close()
    conditions = [event.condition for event in sorted(events, key=lambda event: event.event_id)]
    assert [each.message for each in conditions] == told
    assert {each.reason for each in conditions} <= {"LearnerGeneration"}
