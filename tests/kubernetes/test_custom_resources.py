"""TrainingRuns as requests, against a stand-in API server and the real store."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from requested.place import CONFIG, EVAL_JOBS, TRAINING_RUNS, Place, place, until
from standin_api.server import StandInApi
from troupe.v1 import evaluation_pb2, training_pb2
from troupe_contracts.errors import FailedPrecondition, InvalidArgument, NotFound
from troupe_orchestrator.custom_resources import controller
from troupe_orchestrator.store.evals import EvalState
from troupe_orchestrator.store.runs import RunRecord, RunState

EVENTS = "/apis/events.k8s.io/v1/namespaces/troupe/events"


async def test_an_object_becomes_the_run_that_has_its_uid(here: Place) -> None:
    await here.start()
    uid = here.apply("one")
    status = await here.until_phase("one", "Running")
    assert here.runs.created == [uid]
    assert (status["runId"], status["committedSteps"], status["totalSteps"]) == (uid, 0, 4)
    assert status["display"] == {"stage": "1 executor", "step": "0/4", "policy": "", "reward": ""}
    assert here.condition("one", "Accepted")["status"] == "True"
    assert here.condition("one", "Complete")["status"] == "False"


async def test_what_is_committed_is_shown(here: Place) -> None:
    await here.start()
    uid = here.apply("one")
    await here.until_phase("one", "Running")
    await here.commit(uid, 1)
    await until(lambda: here.status("one")["display"]["step"] == "1/4")
    assert here.status("one")["display"] == {
        "stage": "1 executor", "step": "1/4", "policy": "p@start:1", "reward": "0.250"
    }  # fmt: skip
    await here.runs.becomes(uid, RunState.SUCCEEDED)
    status = await here.until_phase("one", "Succeeded")
    assert here.condition("one", "Complete")["status"] == "True"
    assert status["endTime"]


async def test_an_object_pauses_resumes_and_cancels_its_run(here: Place) -> None:
    await here.start()
    uid = here.apply("one")
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
    uid = here.apply("one")
    await here.until_phase("one", "Running")
    here.desire("one", "Paused")
    await asyncio.wait_for(pausing.wait(), 20)
    if how == "cancelled":
        here.desire("one", "Cancelled")
        await here.until_phase("one", "Cancelled")
    else:
        here.standin.delete(TRAINING_RUNS, "one")
        await until(lambda: here.has_forgotten(uid))
    assert (await here.runs.get(uid)).state is RunState.CANCELLED


async def test_one_that_is_to_be_paused_is_not_begun_until_it_is_to_run(here: Place) -> None:
    await here.start()
    uid = here.apply("one", "Paused")
    await here.until_phase("one", "Pending")
    assert here.condition("one", "Paused")["status"] == "True"
    assert here.runs.created == []
    here.desire("one", "Running")
    await here.until_phase("one", "Running")
    assert here.runs.created == [uid]


async def test_a_run_that_stopped_by_itself_stays_so_until_the_object_says_so_anew(here: Place) -> None:
    await here.start()
    uid = here.apply("one")
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
    uid = here.apply("one")
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
    uid = here.apply("one")
    await here.until_phase("one", "Running")
    with pytest.raises(FailedPrecondition, match=r"TrainingRun troupe/one: .*kubectl -n troupe patch trainingruns one"):
        await here.training.PauseRun(training_pb2.PauseRunRequest(run_id=uid), None)
    with pytest.raises(FailedPrecondition, match="do not resume it"):
        await here.training.ResumeRun(training_pb2.ResumeRunRequest(run_id=uid), None)
    assert await here.state("one") == "Running"


async def test_nor_do_they_where_it_comes_into_being_while_they_are_answered(here: Place) -> None:
    uid = here.apply("one")
    steering = here.training._steering

    class ComesMeanwhile:
        async def check(self, *asked: str) -> None:
            await steering.check(*asked)
            await here.start()
            await here.until_phase("one", "Running")

    here.training._steering = ComesMeanwhile()
    with pytest.raises(NotFound):
        await here.training.PauseRun(training_pb2.PauseRunRequest(run_id=uid), None)


async def test_a_call_may_cancel_it_and_the_object_says_so_for_good(here: Place) -> None:
    await here.start()
    uid = here.apply("one")
    await here.until_phase("one", "Running")
    await here.training.CancelRun(training_pb2.CancelRunRequest(run_id=uid), None)
    await here.until_phase("one", "Cancelled")
    here.desire("one", "Paused")
    here.desire("one", "Running")
    await here.until_phase("one", "Cancelled")


async def test_calls_choose_no_id_that_an_object_may_have(here: Place) -> None:
    await here.start()
    uid = here.apply("one", "Paused")
    await here.until_phase("one", "Pending")
    with pytest.raises(InvalidArgument, match=rf"run_id: '{uid}' has the form of an object's uid.*choose another"):
        await here.training.CreateRun(training_pb2.CreateRunRequest(run_id=uid, config=json.dumps(CONFIG)), None)
    with pytest.raises(InvalidArgument, match="run_id: "):
        await here.training.ForkRun(training_pb2.ForkRunRequest(parent_run_id="parent", run_id=uid), None)
    with pytest.raises(InvalidArgument, match="job_id: "):
        await here.evaluation.CreateEvalJob(evaluation_pb2.CreateEvalJobRequest(job_id=uid), None)
    here.desire("one", "Running")
    await here.until_phase("one", "Running")
    assert here.runs.created == [uid]


async def test_calls_steer_runs_that_no_object_asked_for(here: Place) -> None:
    await here.start()
    await here.runs.create(
        "by-call", '{"dataset": {"train": "/n"}, "steps": 1, "stages": [{"train": "both", "steps": 1}]}'
    )
    await here.training.PauseRun(training_pb2.PauseRunRequest(run_id="by-call"), None)
    assert (await here.runs.get("by-call")).state is RunState.PAUSED


async def test_deleting_an_object_cancels_its_run_and_forgets_the_object(here: Place) -> None:
    await here.start()
    uid = here.apply("one")
    await here.until_phase("one", "Running")
    here.standin.delete(TRAINING_RUNS, "one")
    await until(lambda: here.has_forgotten(uid))
    assert (await here.runs.get(uid)).state is RunState.CANCELLED


async def test_what_is_made_changed_and_deleted_while_nobody_looks_is_caught_up_with(here: Place) -> None:
    await here.start()
    gone = here.apply("gone")
    await here.until_phase("gone", "Running")
    changed = here.apply("changed")
    await here.until_phase("changed", "Queued")
    await here.stop()
    here.standin.delete(TRAINING_RUNS, "gone")
    here.desire("changed", "Cancelled")
    new = here.apply("new")
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
        uid = here.apply("one")
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
        uid = here.apply("one")
        await asyncio.wait_for(asked.wait(), 20)
        await here.stop()
    await here.start()
    await here.until_phase("one", "Running")
    assert here.runs.created == [uid]


async def test_one_that_is_deleted_and_made_again_under_its_name_is_another_run(here: Place) -> None:
    await here.start()
    first = here.apply("one", queue=False)
    await here.until_phase("one", "Running")
    here.standin.delete(TRAINING_RUNS, "one")
    second = here.apply("one", queue=False)
    await here.until_phase("one", "Running")
    assert here.status("one")["runId"] == second
    assert (await here.runs.get(first)).state is RunState.CANCELLED
    assert here.runs.created == [first, second]


async def test_of_two_objects_the_older_one_runs_and_the_other_waits_or_is_refused(here: Place) -> None:
    first, second = here.apply("a-first"), here.apply("b-second")
    here.apply("c-refused", queue=False)
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
    here.apply("bad", config={**CONFIG, "stepz": 3, "rollout": {"designs": 0}})
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
    here.apply("odd", **spec)
    here.apply("good")
    await here.until_phase("good", "Running")
    await here.until_phase("odd", "Failed")
    assert here.condition("odd", "Failed")["reason"] == "InvalidSpec"


async def test_what_holds_a_request_up_is_said_and_it_is_tried_again(here: Place) -> None:
    here.runs.away = True
    await here.start()
    here.apply("one")
    await until(lambda: here.condition("one", "Accepted").get("reason") == "Waiting")
    assert "the stand-in is away" in here.condition("one", "Accepted")["message"]
    assert here.status("one")["phase"] == "Pending"
    here.runs.away = False
    await here.until_phase("one", "Running")


async def test_an_object_whose_run_another_store_has_is_not_begun_anew(here: Place) -> None:
    here.apply("one")
    here.standin.patch_status(TRAINING_RUNS, "one", {"status": {"phase": "Running", "observedGeneration": 1}})
    await here.start()
    status = await here.until_phase("one", "Failed")
    assert "another store" in status["reason"]
    assert here.runs.created == []


@pytest.mark.parametrize("phase", ["Succeeded", "Failed", "Cancelled"])
async def test_an_object_that_has_ended_keeps_its_status_where_the_store_has_nothing_of_it(
    here: Place, standin: StandInApi, tmp_path: Path, phase: str
) -> None:
    await here.start()
    uid, job = here.apply("one"), here.evaluate("sums")
    await here.until_phase("one", "Running")
    await here.until_phase("sums", "Running", EVAL_JOBS)
    await here.runs.becomes(uid, RunState(phase.lower()), "as it ended")
    await here.jobs.becomes(job, EvalState(phase.lower()), "as it ended")
    ended = await here.until_phase("one", phase), await here.until_phase("sums", phase, EVAL_JOBS)
    await here.stop()
    (tmp_path / "empty").mkdir()
    async with place(standin, tmp_path / "empty") as there:
        await there.start()
        for collection in (TRAINING_RUNS, EVAL_JOBS):
            await _is_seen(there, collection, "before")
        for name, collection in (("one", TRAINING_RUNS), ("sums", EVAL_JOBS)):
            found = there.object(name, collection)
            standin.put(collection, {**found, "metadata": {**found["metadata"], "labels": {"touched": "yes"}}})
            await _is_seen(there, collection, f"after-labels-of-{name}")
        assert (there.status("one"), there.status("sums", EVAL_JOBS)) == ended
        for name, desired, collection in (
            ("one", "Paused", TRAINING_RUNS),
            ("one", "Running", TRAINING_RUNS),
            ("one", "Cancelled", TRAINING_RUNS),
            ("sums", "Cancelled", EVAL_JOBS),
        ):
            there.desire(name, desired, collection)
            await _is_seen(there, collection, f"after-{desired.lower()}-of-{name}")
        await there.stop()
        await there.start()
        await there.until_idle()
        assert (there.status("one"), there.status("sums", EVAL_JOBS)) == ended
        assert not {uid, job} & {*there.runs.created, *(request.job_id for request in there.jobs.requests)}
        await until(lambda: _told_of(standin, "RecordLost") == {uid, job})


def _told_of(standin: StandInApi, reason: str) -> set[str]:
    """Uids of the objects that have an Event for this reason."""
    with standin.changed:
        written = list(standin.objects.get(EVENTS, {}).values())
    return {each["regarding"]["uid"] for each in written if each["reason"] == reason}


async def _is_seen(here: Place, collection: str, name: str) -> None:
    """All that was changed before is looked at: an object that is made after it is."""
    here.apply(name) if collection == TRAINING_RUNS else here.evaluate(name)
    await until(lambda: bool(here.status(name, collection)))
    await here.until_idle()


async def test_one_that_is_being_deleted_is_cancelled_before_it_is_gone(here: Place) -> None:
    await here.start()
    uid = here.apply("one")
    await here.until_phase("one", "Running")
    found = here.object("one")
    metadata = {**found["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["somebody/else"]}
    here.standin.put(TRAINING_RUNS, {**found, "metadata": metadata})
    await until(lambda: here.status("one")["phase"] == "Cancelled")
    assert (await here.runs.get(uid)).state is RunState.CANCELLED


async def test_no_object_gets_a_finalizer(here: Place) -> None:
    await here.start()
    here.apply("one")
    await here.until_phase("one", "Running")
    assert "finalizers" not in here.object("one")["metadata"]
