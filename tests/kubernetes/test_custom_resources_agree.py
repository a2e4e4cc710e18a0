"""Objects and calls never disagree, in whatever order things happen.

Once all is quiet, each object says what calls say, what it wants is so, and each run that goes on has an object.
"""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import HealthCheck, given, settings
from requested.agreement import ENDED, Agreement, Happening, check_conditions, happenings
from requested.place import CONFIG, TRAINING_RUNS, Place
from standin_api.objects import custom_resource
from troupe.v1 import training_pb2
from troupe_contracts.errors import NotFound, ServiceError
from troupe_orchestrator.store.runs import RunState, get_run, runs_in_state

HAPPENINGS = happenings(
    "make again", "make again refused", "make again bad", "make again paused",
    "desire Running", "desire Paused", "desire Cancelled",
    "call pause", "call resume", "call cancel", "stop Paused", "stop Failed", "stop Succeeded",
)  # fmt: skip


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(HAPPENINGS)
def test_objects_and_calls_agree_once_all_is_quiet(happenings: list[Happening]) -> None:
    RUNS_AND_CALLS.holds_after(happenings)


@pytest.mark.long
@pytest.mark.timeout(1200)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(HAPPENINGS)
def test_objects_and_calls_agree_however_often_that_is_tried(happenings: list[Happening]) -> None:
    RUNS_AND_CALLS.holds_after(happenings)


async def _one(here: Place, what: str, name: str) -> None:
    match what.split():
        case ["make", "again", *how]:
            here.standin.delete(TRAINING_RUNS, name)
            _apply(here, name, *how)
        case ["desire", desired] if here.object(name)["spec"]["desiredState"] != "Cancelled":
            here.desire(name, desired)
        case ["call", call]:
            await _call(here, call, here.uid(name))
        case ["stop", state]:
            with contextlib.suppress(NotFound):
                await here.runs.becomes(here.uid(name), RunState(state.lower()), "by itself")


def _apply(here: Place, name: str, how: str = "") -> None:
    spec = {"config": CONFIG | ({"stepz": 1} if how == "bad" else {}), "queue": how != "refused"}
    desired = "Paused" if how == "paused" else "Running"
    here.standin.put(TRAINING_RUNS, custom_resource(name, desired, **spec))


async def _call(here: Place, call: str, uid: str) -> None:
    """What a client may try; that it is refused is tested elsewhere."""
    calls = {
        "pause": (here.training.PauseRun, training_pb2.PauseRunRequest),
        "resume": (here.training.ResumeRun, training_pb2.ResumeRunRequest),
        "cancel": (here.training.CancelRun, training_pb2.CancelRunRequest),
    }
    method, request = calls[call]
    before = await get_run(here.database, uid)
    try:
        await method(request(run_id=uid), None)  # type: ignore[arg-type, operator]
    except ServiceError:
        return
    assert call == "cancel", f"a call did {call} {before}"


async def _check(here: Place) -> None:
    objects = dict(here.standin.objects.get(TRAINING_RUNS, {}))
    uids = {found["metadata"]["uid"] for found in objects.values()}
    running = await runs_in_state(here.database, RunState.RUNNING)
    for found in objects.values():
        status, desired = found["status"], found["spec"]["desiredState"]
        run = await get_run(here.database, found["metadata"]["uid"])
        # The object says what calls say.
        said = run.state.capitalize() if run is not None else status["phase"]
        assert status["phase"] == said
        assert run is not None or said in ("Pending", "Failed", "Cancelled")
        assert status.get("runId", "") == ("" if run is None else run.run_id)
        if run is not None:
            told = await here.training.GetRun(training_pb2.GetRunRequest(run_id=run.run_id), None)
            shown = {name: status.get(name) for name in ("committedSteps", "totalSteps", "reason")}
            assert shown == {
                "committedSteps": told.committed_steps,
                "totalSteps": told.total_steps,
                "reason": told.reason,
            }
        # What is to go on waits for the run that holds the policies.
        waits = desired == "Running" and said in ("Paused", "Failed") and bool(running)
        assert status["observedGeneration"] == found["metadata"]["generation"] or waits
        check_conditions(status)
        # What it wants is so.
        if desired == "Cancelled":
            assert said in ENDED
        elif desired == "Paused":
            assert said in ("Pending", "Paused", "Queued", *ENDED)
        else:
            assert said != "Pending"
    for state in (RunState.RUNNING, RunState.QUEUED, RunState.PAUSED):
        for run in await runs_in_state(here.database, state):
            assert run.run_id in uids, f"{run.run_id} is {state}, and nobody asks for it any more"
    assert len(here.runs.created) == len(set(here.runs.created))


RUNS_AND_CALLS = Agreement(TRAINING_RUNS, _apply, _one, _check)
