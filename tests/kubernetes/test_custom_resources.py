"""TrainingRuns and EvalJobs as requests, against a stand-in API server and the real store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from requested.place import CONFIG, EVAL_JOBS, TRAINING_RUNS, Place, place, until
from standin_api.objects import custom_resource
from standin_api.server import StandInApi
from troupe.v1 import evaluation_pb2, training_pb2
from troupe_contracts.errors import FailedPrecondition
from troupe_orchestrator.custom_resources import controller
from troupe_orchestrator.store import runs as store
from troupe_orchestrator.store.evals import EvalState
from troupe_orchestrator.store.object_requests import list_requests
from troupe_orchestrator.store.runs import RunRecord, RunState, StepRecord, StepState

EVENTS = "/apis/events.k8s.io/v1/namespaces/troupe/events"
LINES = '{"id": "a", "question": "1 + 1?", "answer": "2"}\n{"id": "b", "question": "2 + 2?", "answer": "4"}\n'


@pytest.fixture
async def here(standin: StandInApi, tmp_path: Path) -> AsyncIterator[Place]:
    async with place(standin, tmp_path) as made:
        yield made


def apply(here: Place, name: str, desired: str = "Running", **spec: object) -> str:
    """`kubectl apply` of a TrainingRun; its uid."""
    found = here.standin.put(TRAINING_RUNS, custom_resource(name, desired, **{"config": CONFIG, "queue": True, **spec}))
    return str(found["metadata"]["uid"])


def evaluate(here: Place, name: str, **spec: object) -> str:
    """`kubectl apply` of an EvalJob; its uid."""
    given = {"dataset": {"inline": LINES}, "samples": 2, "mode": "System", **spec}
    return str(here.standin.put(EVAL_JOBS, custom_resource(name, **given))["metadata"]["uid"])


def patches(here: Place, name: str) -> int:
    return sum(1 for each, _ in here.standin.status_patches if each == name)


async def test_an_object_becomes_the_run_that_has_its_uid(here: Place) -> None:
    await here.start()
    uid = apply(here, "one")
    status = await here.until_phase("one", "Running")
    assert here.runs.created == [uid]
    assert (status["runId"], status["committedSteps"], status["totalSteps"]) == (uid, 0, 4)
    assert status["display"] == {"stage": "1 executor", "step": "0/4", "policy": "", "reward": ""}
    assert here.condition("one", "Accepted")["status"] == "True"
    assert here.condition("one", "Complete")["status"] == "False"


async def test_what_is_committed_is_shown(here: Place) -> None:
    await here.start()
    uid = apply(here, "one")
    await here.until_phase("one", "Running")
    await commit(here, uid, 1)
    await until(lambda: here.status("one")["display"]["step"] == "1/4")
    assert here.status("one")["display"] == {
        "stage": "1 executor", "step": "1/4", "policy": "p@start:1", "reward": "0.250"
    }  # fmt: skip
    await here.runs.becomes(uid, RunState.SUCCEEDED)
    status = await here.until_phase("one", "Succeeded")
    assert here.condition("one", "Complete")["status"] == "True"
    assert status["endTime"]


async def commit(here: Place, uid: str, step: int) -> None:
    record = StepRecord(
        uid,
        step,
        StepState.ROLLING,
        (),
        {},
        {"p": f"start:{step}"},
        (),
        {"reward_executor": 0.25, "reward_designer": 1.0},
    )
    await store.begin_step(here.database, record)
    for state in (StepState.SEALED, StepState.TRAINED, StepState.SYNCED, StepState.COMMITTED):
        await store.advance_step(here.database, record, state)
    here.runs.changed(uid)


async def test_an_object_pauses_resumes_and_cancels_its_run(here: Place) -> None:
    await here.start()
    uid = apply(here, "one")
    await here.until_phase("one", "Running")
    here.desire("one", "Paused")
    await here.until_phase("one", "Paused")
    assert here.condition("one", "Paused")["status"] == "True"
    here.desire("one", "Running")
    await here.until_phase("one", "Running")
    assert here.condition("one", "Paused")["status"] == "False"
    here.desire("one", "Cancelled")
    await here.until_phase("one", "Cancelled")
    assert here.condition("one", "Cancelled")["status"] == "True"
    assert (await here.runs.get(uid)).state is RunState.CANCELLED


@pytest.mark.parametrize("how", ["cancelled", "deleted"])
async def test_a_run_that_is_long_in_pausing_is_cancelled_at_once(
    here: Place, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    pausing = asyncio.Event()

    async def to_the_steps_end(run_id: str) -> RunRecord:
        pausing.set()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(here.runs, "pause", to_the_steps_end)
    await here.start()
    uid = apply(here, "one")
    await here.until_phase("one", "Running")
    here.desire("one", "Paused")
    await asyncio.wait_for(pausing.wait(), 20)
    if how == "cancelled":
        here.desire("one", "Cancelled")
        await here.until_phase("one", "Cancelled")
    else:
        here.standin.delete(TRAINING_RUNS, "one")
        await until(lambda: forgotten(here, uid))
    assert (await here.runs.get(uid)).state is RunState.CANCELLED


async def test_one_that_is_to_be_paused_is_not_begun_until_it_is_to_run(here: Place) -> None:
    await here.start()
    uid = apply(here, "one", "Paused")
    await here.until_phase("one", "Pending")
    assert here.condition("one", "Paused")["status"] == "True"
    assert here.runs.created == []
    here.desire("one", "Running")
    await here.until_phase("one", "Running")
    assert here.runs.created == [uid]


async def test_a_run_that_stopped_by_itself_stays_so_until_the_object_says_so_anew(here: Place) -> None:
    await here.start()
    uid = apply(here, "one")
    await here.until_phase("one", "Running")
    await here.runs.becomes(uid, RunState.PAUSED, "DiskFull: no space; free some")
    await here.until_phase("one", "Paused")
    paused = here.condition("one", "Paused")
    assert "set spec.desiredState to Paused and then to Running" in paused["message"]
    assert here.runs.resumed == []
    here.desire("one", "Paused")
    await here.until_phase("one", "Paused")
    here.desire("one", "Running")
    await here.until_phase("one", "Running")
    assert here.runs.resumed == [uid]


async def test_a_run_that_stops_again_after_it_was_resumed_is_not_resumed_by_a_restart(here: Place) -> None:
    await here.start()
    uid = apply(here, "one")
    await here.until_phase("one", "Running")
    here.desire("one", "Paused")
    await here.until_phase("one", "Paused")
    await here.stop()
    here.desire("one", "Running")
    # The orchestrator that resumed it was killed before it wrote anything of it.
    await here.runs.resume(uid, here.object("one")["metadata"]["generation"])
    await here.runs.becomes(uid, RunState.PAUSED, "DiskFull: no space; free some")
    await here.start()
    await here.until_phase("one", "Paused")
    await here.until_idle()
    assert here.runs.resumed == [uid]


async def test_calls_neither_pause_nor_resume_it_and_name_the_object(here: Place) -> None:
    await here.start()
    uid = apply(here, "one")
    await here.until_phase("one", "Running")
    with pytest.raises(FailedPrecondition, match=r"TrainingRun troupe/one: .*kubectl -n troupe patch trainingruns one"):
        await here.training.PauseRun(training_pb2.PauseRunRequest(run_id=uid), None)  # type: ignore[arg-type]
    with pytest.raises(FailedPrecondition, match="do not resume it"):
        await here.training.ResumeRun(training_pb2.ResumeRunRequest(run_id=uid), None)  # type: ignore[arg-type]
    assert await here.state("one") == "Running"


async def test_a_call_may_cancel_it_and_the_object_says_so_for_good(here: Place) -> None:
    await here.start()
    uid = apply(here, "one")
    await here.until_phase("one", "Running")
    await here.training.CancelRun(training_pb2.CancelRunRequest(run_id=uid), None)  # type: ignore[arg-type]
    await here.until_phase("one", "Cancelled")
    here.desire("one", "Paused")
    here.desire("one", "Running")
    await here.until_phase("one", "Cancelled")


async def test_calls_steer_runs_that_no_object_asked_for(here: Place) -> None:
    await here.start()
    await here.runs.create(
        "by-call", '{"dataset": {"train": "/n"}, "steps": 1, "stages": [{"train": "both", "steps": 1}]}'
    )
    await here.training.PauseRun(training_pb2.PauseRunRequest(run_id="by-call"), None)  # type: ignore[arg-type]
    assert (await here.runs.get("by-call")).state is RunState.PAUSED


async def test_deleting_an_object_cancels_its_run_and_forgets_the_object(here: Place) -> None:
    await here.start()
    uid = apply(here, "one")
    await here.until_phase("one", "Running")
    here.standin.delete(TRAINING_RUNS, "one")
    await until(lambda: forgotten(here, uid))
    assert (await here.runs.get(uid)).state is RunState.CANCELLED


async def forgotten(here: Place, uid: str) -> bool:
    return uid not in {each.uid for each in await list_requests(here.database)}


async def test_what_is_made_changed_and_deleted_while_nobody_looks_is_caught_up_with(here: Place) -> None:
    await here.start()
    gone = apply(here, "gone")
    await here.until_phase("gone", "Running")
    changed = apply(here, "changed")
    await here.until_phase("changed", "Queued")
    await here.stop()
    here.standin.delete(TRAINING_RUNS, "gone")
    here.desire("changed", "Cancelled")
    new = apply(here, "new")
    await here.start()
    await here.until_phase("new", "Running")
    await here.until_phase("changed", "Cancelled")
    assert (await here.runs.get(gone)).state is RunState.CANCELLED
    assert here.runs.created == [gone, changed, new]


async def test_one_that_is_killed_between_creating_a_run_and_writing_the_status_creates_no_second(
    here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, created = here.runs.create, asyncio.Event()

    async def killed(run_id: str, config: str, queue: bool = False) -> RunRecord:
        await create(run_id, config, queue)
        created.set()
        await asyncio.Event().wait()
        raise AssertionError

    with monkeypatch.context() as patched:
        patched.setattr(here.runs, "create", killed)
        patched.setattr(controller, "_ACT_SECONDS", 60.0)
        await here.start()
        uid = apply(here, "one")
        await asyncio.wait_for(created.wait(), 20)
        await here.stop()
    assert here.status("one") == {}
    await here.start()
    await here.until_phase("one", "Running")
    assert here.runs.created == [uid]


async def test_one_that_is_killed_before_creating_a_run_creates_it_at_the_next_start(
    here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asyncio.Event()

    async def killed(run_id: str, config: str, queue: bool = False) -> RunRecord:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    with monkeypatch.context() as patched:
        patched.setattr(here.runs, "create", killed)
        await here.start()
        uid = apply(here, "one")
        await asyncio.wait_for(asked.wait(), 20)
        await here.stop()
    await here.start()
    await here.until_phase("one", "Running")
    assert here.runs.created == [uid]


async def test_one_that_is_deleted_and_made_again_under_its_name_is_another_run(here: Place) -> None:
    await here.start()
    first = apply(here, "one", queue=False)
    await here.until_phase("one", "Running")
    here.standin.delete(TRAINING_RUNS, "one")
    second = apply(here, "one", queue=False)
    await here.until_phase("one", "Running")
    assert here.status("one")["runId"] == second
    assert (await here.runs.get(first)).state is RunState.CANCELLED
    assert here.runs.created == [first, second]


async def test_of_two_objects_the_older_one_runs_and_the_other_waits_or_is_refused(here: Place) -> None:
    first, second = apply(here, "a-first"), apply(here, "b-second")
    apply(here, "c-refused", queue=False)
    await here.start()
    await here.until_phase("a-first", "Running")
    await here.until_phase("b-second", "Queued")
    status = await here.until_phase("c-refused", "Failed")
    assert f"run {first} trains these policies" in status["reason"]
    assert here.condition("c-refused", "Failed")["reason"] == "FailedPrecondition"
    await here.runs.becomes(first, RunState.SUCCEEDED)
    await here.until_phase("b-second", "Running")
    assert here.runs.created == [first, second]
    # Once refused is refused for good.
    assert (await here.until_phase("c-refused", "Failed"))["phase"] == "Failed"


async def test_a_bad_spec_is_refused_by_the_field_with_the_remedy_and_stays_so(here: Place) -> None:
    await here.start()
    apply(here, "bad", config={**CONFIG, "stepz": 3, "rollout": {"designs": 0}})
    status = await here.until_phase("bad", "Failed")
    assert "spec.config.stepz: unknown key" in status["reason"]
    assert "spec.config.rollout.designs: " in status["reason"]
    assert "delete this object and apply it again" in status["reason"]
    accepted = here.condition("bad", "Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "InvalidSpec")
    await until(lambda: any(each["reason"] == "Refused" for each in here.standin.objects.get(EVENTS, {}).values()))
    await here.stop()
    await here.start()
    await here.until_idle()
    assert here.status("bad") == status


@pytest.mark.parametrize(
    "spec",
    [
        {"config": None},
        {"config": "text"},
        {"config": [1]},
        {"config": {"dataset": {"train": 3}, "steps": "many", "stages": {}}},
        {"queue": "perhaps"},
        {"unknown": 1},
    ],
)
async def test_no_spec_stops_the_controller(here: Place, spec: dict[str, object]) -> None:
    await here.start()
    apply(here, "odd", **spec)
    apply(here, "good")
    await here.until_phase("good", "Running")
    await here.until_phase("odd", "Failed")
    assert here.condition("odd", "Failed")["reason"] == "InvalidSpec"


async def test_what_holds_a_request_up_is_said_and_it_is_tried_again(here: Place) -> None:
    here.runs.away = True
    await here.start()
    apply(here, "one")
    await until(lambda: here.condition("one", "Accepted").get("reason") == "Waiting")
    assert "the stand-in is away" in here.condition("one", "Accepted")["message"]
    assert here.status("one")["phase"] == "Pending"
    here.runs.away = False
    await here.until_phase("one", "Running")


async def test_runs_go_on_while_the_api_server_is_away_and_all_is_caught_up_with_after(here: Place) -> None:
    await here.start()
    uid = apply(here, "one")
    await here.until_phase("one", "Running")
    here.standin.away = True
    here.standin.cut_watches()
    await commit(here, uid, 1)
    await here.runs.becomes(uid, RunState.SUCCEEDED)
    await asyncio.sleep(0.2)
    here.standin.history.clear()
    second = here.standin.put(TRAINING_RUNS, custom_resource("two", config=CONFIG))["metadata"]["uid"]
    assert here.status("one")["phase"] == "Running"
    here.standin.away = False
    await here.until_phase("one", "Succeeded")
    await here.until_phase("two", "Running")
    assert here.runs.created == [uid, second]


async def test_nothing_is_written_and_nothing_asked_while_nothing_changes(here: Place) -> None:
    await here.start()
    apply(here, "one")
    apply(here, "two")
    await here.until_phase("one", "Running")
    await here.until_phase("two", "Queued")
    here.standin.wait_until_watched(EVAL_JOBS)
    await here.until_idle()
    before = len(here.standin.requests)
    for uid in (here.uid("one"), here.uid("two")):
        here.runs.changed(uid)
    await asyncio.sleep(0.3)
    assert here.standin.requests[before:] == []


async def test_what_changes_before_a_write_is_due_is_one_write(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller, "WRITE_SECONDS", 3600.0)
    # The first is of what was created.
    monkeypatch.setattr(controller, "_ACT_SECONDS", 3600.0)
    await here.start()
    uid = apply(here, "one")
    await here.until_phase("one", "Running")
    assert patches(here, "one") == 1
    for step in range(1, 5):
        await commit(here, uid, step)
        await asyncio.sleep(0.05)
    assert patches(here, "one") == 1
    monkeypatch.setattr(controller, "WRITE_SECONDS", 0.0)
    here.runs.changed(uid)
    await until(lambda: here.status("one")["display"]["step"] == "4/4")
    assert patches(here, "one") == 2


async def test_a_status_that_somebody_else_wrote_is_set_right(here: Place) -> None:
    await here.start()
    apply(here, "one")
    await here.until_phase("one", "Running")
    await here.until_idle()
    here.standin.patch_status(TRAINING_RUNS, "one", {"status": {"phase": "Succeeded", "runId": "other", "stray": 1}})
    await until(lambda: here.status("one")["phase"] == "Running" and here.status("one")["runId"] == here.uid("one"))


async def test_conditions_change_their_time_only_with_their_status(
    here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    await here.start()
    uid = apply(here, "one")
    await here.until_phase("one", "Running")
    old = [{**each, "lastTransitionTime": "2020-01-01T00:00:00Z"} for each in here.status("one")["conditions"]]
    here.standin.patch_status(TRAINING_RUNS, "one", {"status": {"conditions": old}})
    await here.runs.becomes(uid, RunState.SUCCEEDED)
    await here.until_phase("one", "Succeeded")
    assert here.condition("one", "Accepted")["lastTransitionTime"] == "2020-01-01T00:00:00Z"
    assert here.condition("one", "Complete")["lastTransitionTime"] > "2020-01-01T00:00:00Z"


async def test_an_object_whose_run_another_store_has_is_not_begun_anew(here: Place) -> None:
    apply(here, "one")
    here.standin.patch_status(TRAINING_RUNS, "one", {"status": {"phase": "Running", "observedGeneration": 1}})
    await here.start()
    status = await here.until_phase("one", "Failed")
    assert "another store" in status["reason"]
    assert here.runs.created == []


async def test_one_that_is_being_deleted_is_cancelled_before_it_is_gone(here: Place) -> None:
    await here.start()
    uid = apply(here, "one")
    await here.until_phase("one", "Running")
    found = here.object("one")
    metadata = {**found["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["somebody/else"]}
    here.standin.put(TRAINING_RUNS, {**found, "metadata": metadata})
    await until(lambda: here.status("one")["phase"] == "Cancelled")
    assert (await here.runs.get(uid)).state is RunState.CANCELLED


async def test_no_object_gets_a_finalizer(here: Place) -> None:
    await here.start()
    apply(here, "one")
    await here.until_phase("one", "Running")
    assert "finalizers" not in here.object("one")["metadata"]


async def test_an_eval_job_is_the_call_that_it_says_and_its_numbers_are_shown(here: Place) -> None:
    await here.start()
    uid = evaluate(
        here, "sums", mode="Majority", votes=3, sampling={"temperature": 0.5, "maxTokens": 9, "seed": 4}, limit=2,
        target={"checkpoint": {"runId": "r", "best": True, "uris": {"p": "/w"}}},
    )  # fmt: skip
    status = await here.until_phase("sums", "Running", EVAL_JOBS)
    (request,) = here.jobs.requests
    assert (request.job_id, request.dataset_name, request.dataset) == (uid, "sums.jsonl", LINES.encode())
    assert (request.mode, request.votes, request.samples) == (evaluation_pb2.EVAL_MODE_MAJORITY, 3, 2)
    assert (request.sampling.temperature, request.sampling.max_tokens, request.sampling.seed) == (0.5, 9, 4)
    assert (request.target.checkpoint.run_id, request.target.checkpoint.best) == ("r", True)
    assert dict(request.target.checkpoint.uris) == {"p": "/w"}
    assert (status["itemsDone"], status["itemsTotal"]) == (0, 4)
    summary = evaluation_pb2.EvalSummary(success=0.5, success_low=0.25, success_high=0.75, coverage=1.0)
    await here.jobs.becomes(uid, EvalState.SUCCEEDED, summary=summary)
    status = await here.until_phase("sums", "Succeeded", EVAL_JOBS)
    assert status["display"] == {"accuracy": "0.500", "ci95": "0.250-0.750"}
    assert status["summary"]["success"] == 0.5
    assert here.condition("sums", "Complete", EVAL_JOBS)["status"] == "True"


async def test_an_eval_job_reads_the_file_that_it_names_once(here: Place, tmp_path: Path) -> None:
    file = tmp_path / "held_out.jsonl"
    file.write_text(LINES)
    await here.start()
    evaluate(here, "sums", dataset={"path": str(file)})
    await here.until_phase("sums", "Running", EVAL_JOBS)
    (request,) = here.jobs.requests
    assert (request.dataset_name, request.dataset) == ("held_out.jsonl", LINES.encode())
    await here.stop()
    file.write_text("other")
    await here.start()
    await here.until_idle()
    assert len(here.jobs.requests) == 1
    assert here.status("sums", EVAL_JOBS)["phase"] == "Running"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"dataset": {"path": "/no/such/file"}}, "spec.dataset.path: /no/such/file: No such file"),
        ({"dataset": {"path": "relative"}}, "spec.dataset.path: relative: must begin with /"),
        ({"dataset": {}}, "spec.dataset: needs one of path and inline"),
        ({"mode": "Guess"}, "spec.mode: 'Guess' is none of System, SingleAgent, Majority, FixedWorkflow"),
    ],
)
async def test_an_eval_job_that_cannot_be_is_refused_by_the_field(
    here: Place, spec: dict[str, object], said: str
) -> None:
    await here.start()
    evaluate(here, "bad", **spec)
    status = await here.until_phase("bad", "Failed", EVAL_JOBS)
    assert said in status["reason"]


async def test_an_eval_job_is_cancelled_by_its_object_and_with_it(here: Place) -> None:
    await here.start()
    evaluate(here, "cancelled")
    deleted = evaluate(here, "deleted")
    await here.until_phase("cancelled", "Running", EVAL_JOBS)
    await here.until_phase("deleted", "Running", EVAL_JOBS)
    here.desire("cancelled", "Cancelled", EVAL_JOBS)
    await here.until_phase("cancelled", "Cancelled", EVAL_JOBS)
    here.standin.delete(EVAL_JOBS, "deleted")
    await until(lambda: forgotten(here, deleted))
    assert "Paused" not in {each["type"] for each in here.status("cancelled", EVAL_JOBS)["conditions"]}
