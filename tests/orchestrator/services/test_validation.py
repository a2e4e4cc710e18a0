"""Validation inside a run: when, on what, under which weights, once; and the best step that comes of it."""

import asyncio
from pathlib import Path

import pytest
from orchestrated.child import Child, child
from orchestrated.faults import LostTogether
from orchestrated.models import GUESS, RIGHT, SINGLE, WRONG, question_of, right_unless_guessed
from orchestrated.world import Backends, World, lines, math_task, refused
from troupe.v1 import evaluation_pb2, policy_pb2, training_pb2
from troupe_contracts.errors import Exhausted, Internal
from troupe_orchestrator.datasets.task import MathReference
from troupe_orchestrator.grading.grades import UNGRADABLE, Correct, Grade, Incorrect
from troupe_orchestrator.grading.workers import MathGrader
from troupe_orchestrator.rollout import faults as rollout_faults

pytestmark = pytest.mark.asyncio(loop_scope="session")

TASKS = [math_task(f"task-{number}") for number in range(4)]
HELD = [math_task(f"held-{number}") for number in range(4)]
Get = evaluation_pb2.GetEvalJobRequest


def config(folder: Path, held: list[dict[str, object]], every: int = 1, **changes: object) -> str:
    """A run of three steps over TASKS, validated on `held`."""
    file = folder / "held.jsonl"
    file.write_text(lines(*held))
    defaults: dict[str, object] = {
        "steps": 3,
        "stages": [{"train": "both", "steps": 3}],
        "validation": {"dataset": str(file), "every": every},
        "checkpoint": {"every": 10, "keep": 1},
    }
    return World.config(_Folder(folder), TASKS, **(defaults | changes))  # type: ignore[arg-type]


class _Folder:
    """What World.config needs of a world."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder


def success_by_step(backends: Backends, right: dict[int, int]) -> None:
    """Of the held-out problems, this many are solved by the weights of each step."""
    backends.designer.otherwise = [SINGLE, GUESS]
    for row in HELD:
        backends.designer.scripts[str(row["question"])] = [SINGLE]

    def reply(request: policy_pb2.GenerateRequest) -> str:
        for number, row in enumerate(HELD):
            if f"({row['id']})" in question_of(request):
                return RIGHT if number < right[backends.policy.weights.version.number] else WRONG
        return right_unless_guessed(request)

    backends.policy.reply = reply


def validations(events: list[training_pb2.RunEvent]) -> dict[int, dict[str, float]]:
    return {event.step: dict(event.eval_finished.metrics) for event in events if event.HasField("eval_finished")}


def committed(events: list[training_pb2.RunEvent]) -> dict[int, dict[str, float]]:
    return {event.step: dict(event.step_committed.metrics) for event in events if event.HasField("step_committed")}


PLATEAU = [
    {"train": "executor", "steps": 20, "until": {"window": 1, "min_improvement": 0.1, "min_steps": 2}},
    {"train": "designer", "steps": 1},
]


def trained(events: list[training_pb2.RunEvent]) -> str:
    """What each committed step trained, by the first letter."""
    return "".join(event.step_committed.trains[0] for event in events if event.HasField("step_committed"))


async def test_a_stage_ends_where_its_validations_stop_growing_also_in_another_orchestrator(
    open_world, stand_ins: Backends
) -> None:
    # Steps 1 to 3 grow, 4 does not; of the next stage of the executor neither 7 nor 6 does.
    success_by_step(stand_ins, {1: 0, 2: 1, 3: 2, 4: 2, 5: 4, 6: 3, 7: 3, 8: 3})
    async with open_world(learner=True) as world:
        given = config(world.folder, HELD, steps=8, stages=PLATEAU, checkpoint={"every": 1, "keep": 10})
        await world.training.CreateRun(training_pb2.CreateRunRequest(run_id="run", config=given))
        async for event in world.training.WatchRun(training_pb2.WatchRunRequest(run_id="run"), timeout=60):
            if event.HasField("step_committed") and event.step == 4:
                break
    async with open_world(learner=True) as world:
        events = await world.run_events()
        assert (await world.get_run()).state == training_pb2.RUN_STATE_SUCCEEDED
        assert trained(events) == "eeeedeed"
        told = [(event.step, event.condition.message) for event in events if event.condition.reason == "StagePlateau"]
        assert [step for step, _ in told] == [4, 7]
        assert (
            "stage 1 ends with step 4: the last 1 validations had a success of 0.5 at most, those before 0.5"
            in told[0][1]
        )
        # A fork in the middle of the stage goes on with the validations that its parent had in it.
        await world.training.ForkRun(training_pb2.ForkRunRequest(parent_run_id="run", step=6, run_id="fork"))
        assert trained(await world.run_events("fork")) == "ed"
        assert ((await world.get_run("fork")).state) == training_pb2.RUN_STATE_SUCCEEDED


async def test_a_run_ends_when_the_last_stage_of_a_plan_that_does_not_repeat_has_ended(
    open_world, stand_ins: Backends
) -> None:
    success_by_step(stand_ins, dict.fromkeys(range(1, 9), 2))
    async with open_world(learner=True) as world:
        stages = [PLATEAU[0]]
        events = await world.run(config(world.folder, HELD, steps=8, stages=stages, repeat=False))
        run = await world.get_run()
        assert (run.state, run.committed_steps, run.total_steps) == (training_pb2.RUN_STATE_SUCCEEDED, 2, 8), run.reason
        assert trained(events) == "ee"
        assert [saved.step for saved in run.checkpoints] == [2, 1]
        with refused("FAILED_PRECONDITION", "has ended its last stage with step 2", "stages"):
            await world.training.ForkRun(training_pb2.ForkRunRequest(parent_run_id="run", step=2, run_id="fork"))


async def test_each_due_step_is_validated_under_its_own_weights_and_the_best_one_keeps_its_checkpoint(
    open_world, stand_ins: Backends
) -> None:
    success_by_step(stand_ins, {1: 1, 2: 3, 3: 3})
    async with open_world(learner=True) as world:
        events = await world.run(config(world.folder, HELD))
        assert {step: told["success"] for step, told in validations(events).items()} == {1: 0.25, 2: 0.75, 3: 0.75}
        metrics = committed(events)
        assert {step: each["validation_success"] for step, each in metrics.items()} == {1: 0.25, 2: 0.75, 3: 0.75}
        run = await world.get_run()
        # Of equals the earlier one, whatever `keep` says; the last step has the checkpoint of the run's end.
        assert (run.best_step, run.best_success) == (2, 0.75)
        assert [(saved.step, saved.best) for saved in run.checkpoints] == [(3, False), (2, True)]
        job = await world.evaluation.GetEvalJob(Get(job_id="run.step-2"))
        assert (job.run_id, job.step, job.items_done) == ("run", 2, 4)
        # One copy of the problems serves all.
        assert [path.parent.name for path in (world.folder / "data" / "evals").glob("*/dataset")] == ["run.step-1"]
        assert {item.executor_version.number for item in await world.items("run.step-2")} == {2}
        # Nothing of it was trained on.
        for batch in stand_ins.learner.batches.values():
            assert not any(b"(held-" in bytes(sequence.token_ids) for sequence in batch)
        with refused("FAILED_PRECONDITION", "validation of run run"):
            await world.evaluation.ResumeEvalJob(evaluation_pb2.ResumeEvalJobRequest(job_id="run.step-2"))


async def test_only_every_kth_step_is_validated(open_world, stand_ins: Backends) -> None:
    success_by_step(stand_ins, {2: 4})
    async with open_world(learner=True) as world:
        events = await world.run(config(world.folder, HELD, every=2))
        assert list(validations(events)) == [2]
        assert [step for step, metrics in committed(events).items() if "validation_success" in metrics] == [2]


async def test_a_question_in_both_files_stops_the_start_and_is_named(open_world) -> None:
    shared = math_task("other-name") | {"question": f"  {str(TASKS[2]['question']).upper()} "}
    async with open_world(learner=True) as world:
        text = config(world.folder, [HELD[0], shared])
        with refused("INVALID_ARGUMENT", "other-name has the question of task-2", field="config.validation.dataset"):
            await world.training.CreateRun(training_pb2.CreateRunRequest(config=text))


@pytest.mark.parametrize("content", ["", "{not json\n", lines(HELD[0]) + "{not json\n"])
async def test_a_validation_file_that_cannot_be_used_whole_stops_the_start(open_world, content: str) -> None:
    async with open_world(learner=True) as world:
        text = config(world.folder, HELD)
        (world.folder / "held.jsonl").write_text(content)
        with refused("INVALID_ARGUMENT", field="config.validation.dataset"):
            await world.training.CreateRun(training_pb2.CreateRunRequest(config=text))


async def test_a_run_killed_while_it_validates_goes_on_with_the_same_job_and_validates_the_step_once(
    tmp_path: Path, stand_ins: Backends, sandbox: str
) -> None:
    success_by_step(stand_ins, {1: 2, 2: 2})
    answered, gate = asyncio.Semaphore(2), asyncio.Event()
    by_step = stand_ins.policy.reply

    async def reply(request: policy_pb2.GenerateRequest) -> str:
        if "(held-" in question_of(request) and not gate.is_set():
            await answered.acquire()
        answer = by_step(request)
        assert isinstance(answer, str)
        return answer

    stand_ins.policy.reply = reply
    folder = tmp_path / "world"
    folder.mkdir()
    text = config(folder, HELD, steps=2)
    async with child(folder, stand_ins, sandbox, learner=True) as first:
        await first.training.CreateRun(training_pb2.CreateRunRequest(run_id="run", config=text))
        done = await items(first, 2)
        first.kill()
    gate.set()
    stand_ins.designer.requests.clear()
    async with child(folder, stand_ins, sandbox, learner=True) as second:
        request = training_pb2.WatchRunRequest(run_id="run")
        events = [event async for event in second.training.WatchRun(request, timeout=60)]
        after = await items(second, 4)
        run = await second.training.GetRun(training_pb2.GetRunRequest(run_id="run"))
    assert run.state == training_pb2.RUN_STATE_SUCCEEDED, run.reason
    assert {step: told["success"] for step, told in validations(events).items()} == {1: 0.5, 2: 0.5}
    assert sum(event.HasField("eval_finished") for event in events) == 2
    assert {name: item for name, item in after.items() if name in done} == done
    asked = [request.task_id for request in stand_ins.designer.requests if request.task_id.startswith("held-")]
    # What was left of the first step, and all of the second.
    assert sorted(asked) == sorted(
        [*({str(row["id"]) for row in HELD} - done.keys()), *(str(row["id"]) for row in HELD)]
    )
    assert (run.best_step, [applied.step for applied in stand_ins.learner.applied]) == (1, [1, 2])


async def items(orchestrator: Child, count: int) -> dict[str, evaluation_pb2.EvalItem]:
    """The items of the first step's validation, once there are so many."""
    async with asyncio.timeout(60):
        while True:
            page = await _page(orchestrator)
            if len(page) >= count:
                return page
            await asyncio.sleep(0.05)


async def _page(orchestrator: Child) -> dict[str, evaluation_pb2.EvalItem]:
    jobs = await orchestrator.evaluation.ListEvalJobs(evaluation_pb2.ListEvalJobsRequest())
    if "run.step-1" not in [job.job_id for job in jobs.jobs]:
        return {}
    listed = await orchestrator.evaluation.ListEvalItems(evaluation_pb2.ListEvalItemsRequest(job_id="run.step-1"))
    return {item.problem_id: item for item in listed.items}


async def test_a_validation_that_is_cancelled_leaves_its_step_without_one(open_world, stand_ins: Backends) -> None:
    success_by_step(stand_ins, {1: 4, 2: 4, 3: 4})
    gate = asyncio.Event()
    by_step = stand_ins.policy.reply

    async def reply(request: policy_pb2.GenerateRequest) -> str:
        if "(held-" in question_of(request):
            await gate.wait()
        answer = by_step(request)
        assert isinstance(answer, str)
        return answer

    stand_ins.policy.reply = reply
    async with open_world(learner=True) as world:
        running = asyncio.create_task(world.run(config(world.folder, HELD)))
        async with asyncio.timeout(30):
            while not any("(held-" in question_of(request) for request in stand_ins.policy.requests):
                await asyncio.sleep(0.02)
        await world.evaluation.CancelEvalJob(evaluation_pb2.CancelEvalJobRequest(job_id="run.step-1"))
        gate.set()
        events = await running
        assert list(validations(events)) == [2, 3]
        assert [event.step for event in events if event.condition.reason == "ValidationEnded"] == [1]
        assert (await world.get_run()).best_step == 2


async def test_a_run_that_is_cancelled_while_it_validates_ends_its_validation(open_world, stand_ins: Backends) -> None:
    success_by_step(stand_ins, {})

    async def waits(request: policy_pb2.GenerateRequest) -> str:
        if "(held-" in question_of(request):
            await asyncio.Event().wait()
        return right_unless_guessed(request)

    stand_ins.policy.reply = waits
    async with open_world(learner=True) as world:
        text = config(world.folder, HELD)
        await world.training.CreateRun(training_pb2.CreateRunRequest(run_id="run", config=text))
        async with asyncio.timeout(30):
            while not any("(held-" in question_of(request) for request in stand_ins.policy.requests):
                await asyncio.sleep(0.02)
        await world.training.CancelRun(training_pb2.CancelRunRequest(run_id="run"))
        job = await world.evaluation.GetEvalJob(Get(job_id="run.step-1"))
        assert (job.state, job.reason) == (evaluation_pb2.EVAL_STATE_CANCELLED, "run run was cancelled")


async def test_faults_while_a_run_validates_are_told_as_the_validations_and_nothing_of_them_counts_as_training(
    open_world, stand_ins: Backends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout_faults, "NOTICE_SECONDS", 0.05)
    # Of what it has, step 2 solves all.
    success_by_step(stand_ins, {1: 2, 2: 4, 3: 2})
    by_step, full = stand_ins.policy.reply, [Exhausted("the queue is full", 0.1) for _ in range(2)]

    def reply(request: policy_pb2.GenerateRequest) -> str:
        if stand_ins.policy.weights.version.number == 2 and "(held-" in question_of(request):
            if "(held-0)" in question_of(request):
                raise Internal("the engine fell over")
            if full:
                raise full.pop()
        answer = by_step(request)
        assert isinstance(answer, str)
        return answer

    stand_ins.policy.reply = reply
    async with open_world(learner=True) as world:
        events = await world.run(config(world.folder, HELD))
        run = await world.get_run()
        assert run.state == training_pb2.RUN_STATE_SUCCEEDED, run.reason
        told = {event.condition.reason: event for event in events if event.HasField("condition")}
        assert sorted(event.condition.reason for event in events if event.HasField("condition")) == [
            "ExecutorFull",
            "InfrastructureFault",
            "ValidationIncomplete",
        ]
        for reason, text in (("ExecutorFull", "the queue is full"), ("InfrastructureFault", "the engine fell over")):
            event = told[reason]
            assert event.step == 2
            assert event.condition.message.startswith("validation run.step-2: executor: ")
            assert text in event.condition.message
            assert event.condition.remedy
        assert [event.condition for event in run.recent_events if event.HasField("condition")] == [
            event.condition for event in events if event.HasField("condition")
        ]
        for metrics in committed(events).values():
            assert (metrics["faults"], metrics["tasks_dropped"]) == (0, 0)
            assert {value for name, value in metrics.items() if name.startswith("drop_rate/")} == {0}
        assert list(run.quarantined_tasks) == []
        measured = validations(events)
        assert (measured[2]["success"], measured[2]["coverage"]) == (1.0, 0.75)
        assert (run.best_step, run.best_success) == (1, 0.5)


async def test_answers_of_a_validation_that_no_grader_could_grade_are_told_with_its_step(
    open_world, stand_ins: Backends, monkeypatch: pytest.MonkeyPatch
) -> None:
    success_by_step(stand_ins, {1: 4, 2: 3, 3: 4})

    async def grade(self: MathGrader, reference: MathReference, answer: str, grader: str, question: str) -> Grade:
        held = "(held-" in question
        return Correct() if "42" in answer else Incorrect(f"{UNGRADABLE}: it used up its memory", ungradable=held)

    monkeypatch.setattr(MathGrader, "grade", grade)
    async with open_world(learner=True) as world:
        events = await world.run(config(world.folder, HELD))
        (event,) = [event for event in events if event.condition.reason == "UngradableAnswers"]
        assert event.step == 2
        assert event.condition.message == (
            "validation run.step-2: 1 of 4 answers ended every grader that tried it, and counts as wrong: held-3 "
            "(it used up its memory)"
        )
        assert event.condition.remedy
        assert {metrics["ungradable"] for metrics in committed(events).values()} == {0}


async def test_a_validation_file_that_changes_under_a_run_stops_it_by_name(open_world, stand_ins: Backends) -> None:
    success_by_step(stand_ins, dict.fromkeys(range(1, 13), 4))
    async with open_world(learner=True) as world:
        text = config(world.folder, HELD, steps=12)
        await world.training.CreateRun(training_pb2.CreateRunRequest(run_id="run", config=text))
        async for event in world.training.WatchRun(training_pb2.WatchRunRequest(run_id="run"), timeout=60):
            if event.HasField("eval_finished"):
                break
        await world.training.PauseRun(training_pb2.PauseRunRequest(run_id="run"))
        (world.folder / "held.jsonl").write_text(lines(*HELD[:2]))
        await world.training.ResumeRun(training_pb2.ResumeRunRequest(run_id="run"))
        await world.run_events()
        run = await world.get_run()
        assert run.state == training_pb2.RUN_STATE_PAUSED
        assert "has changed since step 1" in run.reason


async def test_an_engine_and_its_learner_that_are_lost_together_cost_the_validation_no_item(
    open_world, stand_ins: Backends
) -> None:
    losing = LostTogether(stand_ins, lambda request: "(held-2)" in question_of(request))
    async with open_world(learner=True) as world:
        events = await world.run(config(world.folder, HELD, steps=1, stages=[{"train": "both", "steps": 1}]))
        run = await world.get_run()
        assert run.state == training_pb2.RUN_STATE_SUCCEEDED, run.reason
    losing.check(events)
    (metrics,) = validations(events).values()
    assert metrics["coverage"] == 1
    assert "ValidationIncomplete" not in [event.condition.reason for event in events]
