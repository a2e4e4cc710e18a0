"""What a run tells of answers that end every grader. The grader is a stand-in; the real one is tested in `grading`."""

import pytest
from orchestrated.faults import ONE_STEP, metrics, rollout, trees
from orchestrated.world import math_task
from troupe_orchestrator.datasets.task import MathReference
from troupe_orchestrator.grading.grades import Correct, Grade, Incorrect
from troupe_orchestrator.grading.workers import MathGrader
from troupe_orchestrator.tree import ExecutionPayload, NodeKind

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_ungradable_answers_are_worth_nothing_and_counted_and_told_once_for_the_step(
    open_world, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def grade(self: MathGrader, reference: MathReference, answer: str, grader: str, question: str) -> Grade:
        return Correct() if "42" in answer else Incorrect("ungradable: it used up its memory", ungradable=True)

    monkeypatch.setattr(MathGrader, "grade", grade)
    async with open_world(learner=True) as world:
        # Of two designs one answers 42.
        tasks = [math_task("one"), math_task("two")]
        events = await world.run(world.config(tasks, **ONE_STEP, rollout=rollout(2)))
        told = metrics(events)
        assert (told["ungradable"], told["executions"], told["success"]) == (2, 4, 0.5)
        assert "faults" not in told or told["faults"] == 0
        (condition,) = [event.condition for event in events if event.HasField("condition")]
        assert condition.reason == "UngradableAnswers"
        assert condition.message.startswith("2 of 4 answers ended every grader that tried them, and count as wrong: ")
        assert all(f"{task['id']} (it used up its memory)" in condition.message for task in tasks)
        assert "troupe trace" in condition.remedy
        assert [event.condition for event in (await world.get_run()).recent_events if event.HasField("condition")] == [
            condition
        ]
        payloads = [node.payload for tree in trees(world) for node in tree.of_kind(NodeKind.EXECUTION)]
        flags = {each.success: each.flags for each in payloads if isinstance(each, ExecutionPayload)}
        assert flags == {True: (), False: ("ungradable",)}
