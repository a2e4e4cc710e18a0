"""EvalJobs and calls never disagree, in whatever order things happen.

Once all is quiet, each object says what calls say, what it wants is so, and each job that runs has an object.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from requested.agreement import ENDED, Agreement, Happening, check_conditions, happenings
from requested.place import EVAL_JOBS, Place, until
from troupe.v1 import evaluation_pb2
from troupe_contracts.errors import FailedPrecondition, NotFound, ServiceError
from troupe_orchestrator.store.evals import EvalState, get_job, running_jobs

HAPPENINGS = happenings(
    "make again", "make again bad", "make again cancelled",
    "desire Cancelled", "call cancel", "call resume", "stop Succeeded", "stop Failed",
)  # fmt: skip


async def test_what_a_call_cancels_is_cancelled_for_its_object_also_when_nobody_looked(here: Place) -> None:
    await here.start()
    here.evaluate("seen")
    unseen = here.evaluate("unseen")
    for name in ("seen", "unseen"):
        await here.until_phase(name, "Running", EVAL_JOBS)
    await here.evaluation.CancelEvalJob(_cancel(here.uid("seen", EVAL_JOBS)), None)
    await here.until_phase("seen", "Cancelled", EVAL_JOBS)
    await here.stop()
    await here.evaluation.CancelEvalJob(_cancel(unseen), None)
    assert here.status("unseen", EVAL_JOBS)["phase"] == "Running"
    await here.start()
    status = await here.until_phase("unseen", "Cancelled", EVAL_JOBS)
    assert (status["jobId"], status["reason"]) == (unseen, "cancelled by request")
    assert here.condition("unseen", "Cancelled", EVAL_JOBS)["status"] == "True"


async def test_calls_see_what_an_object_cancelled_and_cannot_begin_it_again(here: Place) -> None:
    await here.start()
    uid = here.evaluate("sums")
    await here.until_phase("sums", "Running", EVAL_JOBS)
    await here.stop()
    here.desire("sums", "Cancelled", EVAL_JOBS)
    assert await _state(here, uid) == "Running"
    await here.start()
    await here.until_phase("sums", "Cancelled", EVAL_JOBS)
    assert await _state(here, uid) == "Cancelled"
    with pytest.raises(FailedPrecondition, match="EvalJob troupe/sums"):
        await here.evaluation.ResumeEvalJob(evaluation_pb2.ResumeEvalJobRequest(job_id=uid), None)


async def test_a_job_whose_object_went_while_nobody_looked_is_cancelled_at_the_next_start(here: Place) -> None:
    await here.start()
    uid = here.evaluate("sums")
    await here.until_phase("sums", "Running", EVAL_JOBS)
    await here.stop()
    here.standin.delete(EVAL_JOBS, "sums")
    await here.start()
    await until(lambda: here.has_forgotten(uid))
    assert await _state(here, uid) == "Cancelled"


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(HAPPENINGS)
def test_objects_and_calls_agree_once_all_is_quiet(happenings: list[Happening]) -> None:
    EVAL_JOBS_AND_CALLS.holds_after(happenings)


@pytest.mark.long
@pytest.mark.timeout(1200)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(HAPPENINGS)
def test_objects_and_calls_agree_however_often_that_is_tried(happenings: list[Happening]) -> None:
    EVAL_JOBS_AND_CALLS.holds_after(happenings)


async def _one(here: Place, what: str, name: str) -> None:
    match what.split():
        case ["make", "again", *how]:
            here.standin.delete(EVAL_JOBS, name)
            dataset = {"dataset": {"path": "/no/such/file"}} if how == ["bad"] else {}
            here.evaluate(name, "Cancelled" if how == ["cancelled"] else "Running", **dataset)
        case ["desire", desired]:
            here.desire(name, desired, EVAL_JOBS)
        case ["call", call]:
            await _call(here, call, here.uid(name, EVAL_JOBS))
        case ["stop", state]:
            uid = here.uid(name, EVAL_JOBS)
            job = await get_job(here.database, uid)
            if job is not None and job.state is EvalState.RUNNING:
                await here.jobs.becomes(uid, EvalState(state.lower()), "by itself")


async def _call(here: Place, call: str, uid: str) -> None:
    """What a client may try."""
    try:
        if call == "cancel":
            await here.evaluation.CancelEvalJob(_cancel(uid), None)
        else:
            await here.evaluation.ResumeEvalJob(evaluation_pb2.ResumeEvalJobRequest(job_id=uid), None)
    except ServiceError:
        return
    assert call == "cancel", f"a call did {call} {uid}"


def _cancel(uid: str) -> evaluation_pb2.CancelEvalJobRequest:
    return evaluation_pb2.CancelEvalJobRequest(job_id=uid)


async def _state(here: Place, uid: str) -> str:
    """As a call says it; empty where there is no such job."""
    try:
        job = await here.evaluation.GetEvalJob(evaluation_pb2.GetEvalJobRequest(job_id=uid), None)
    except NotFound:
        return ""
    return evaluation_pb2.EvalState.Name(job.state).removeprefix("EVAL_STATE_").capitalize()


async def _check(here: Place) -> None:
    objects = dict(here.standin.objects.get(EVAL_JOBS, {}))
    uids = {found["metadata"]["uid"] for found in objects.values()}
    for found in objects.values():
        status, desired, uid = found["status"], found["spec"]["desiredState"], found["metadata"]["uid"]
        called = await _state(here, uid)
        said = status["phase"]
        # The object says what calls say; what was never begun, only the object knows of.
        assert said == called or (not called and said in ("Failed", "Cancelled"))
        assert status.get("jobId", "") == (uid if called else "")
        assert status["observedGeneration"] == found["metadata"]["generation"]
        check_conditions(status)
        # What it wants is so.
        assert desired == "Running" or said in ENDED
    for job in await running_jobs(here.database):
        assert job.job_id in uids, f"{job.job_id} runs, and nobody asks for it any more"
    made = [request.job_id for request in here.jobs.requests]
    assert len(made) == len(set(made))


EVAL_JOBS_AND_CALLS = Agreement(EVAL_JOBS, Place.evaluate, _one, _check)
