"""What is written into the status of an object, and when, against a stand-in API server and the real store."""

from __future__ import annotations

import asyncio

import pytest
from requested.place import CONFIG, EVAL_JOBS, TRAINING_RUNS, Place, until
from sqlalchemy import func, update
from standin_api.objects import custom_resource
from troupe.v1 import training_pb2
from troupe_orchestrator.custom_resources import controller, status_writer
from troupe_orchestrator.store.runs import RunState
from troupe_orchestrator.store.schema import runs


def patches(here: Place, name: str) -> int:
    return sum(1 for each, _ in here.standin.status_patches if each == name)


async def test_runs_go_on_while_the_api_server_is_away_and_all_is_caught_up_with_after(here: Place) -> None:
    await here.start()
    uid = here.apply("one")
    await here.until_phase("one", "Running")
    here.standin.away = True
    here.standin.cut_watches()
    await here.commit(uid, 1)
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
    here.apply("one")
    here.apply("two")
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
    monkeypatch.setattr(status_writer, "WRITE_SECONDS", 3600.0)
    # The first is of what was created.
    monkeypatch.setattr(controller, "_ACT_SECONDS", 3600.0)
    await here.start()
    uid = here.apply("one")
    await here.until_phase("one", "Running")
    assert patches(here, "one") == 1
    for step in range(1, 5):
        await here.commit(uid, step)
        await asyncio.sleep(0.05)
    assert patches(here, "one") == 1
    monkeypatch.setattr(status_writer, "WRITE_SECONDS", 0.0)
    here.runs.changed(uid)
    await until(lambda: here.status("one")["display"]["step"] == "4/4")
    assert patches(here, "one") == 2


async def test_what_a_run_waits_for_is_its_reason_as_calls_show_it_until_it_waits_no_more(here: Place) -> None:
    await here.start()
    uid = here.apply("one")
    await here.until_phase("one", "Running")
    assert here.status("one")["reason"] == ""
    here.runs.waits[uid] = "waits: NoExecutors: Service executor has no endpoint"
    here.runs.changed(uid)
    await until(lambda: here.status("one")["reason"] == here.runs.waits[uid])
    run = await here.training.GetRun(training_pb2.GetRunRequest(run_id=uid), None)
    assert run.reason == here.status("one")["reason"]
    # Nobody tells that it waits no more.
    del here.runs.waits[uid]
    await until(lambda: here.status("one")["reason"] == "")


async def test_a_run_of_a_config_that_is_refused_by_now_is_shown_without_its_stage(here: Place) -> None:
    await here.start()
    uid = here.apply("one")
    await here.until_phase("one", "Running")
    refused = update(runs).where(runs.c.run_id == uid).values(config=func.replace(runs.c.config, "seed: 0", "seed: -5"))
    async with here.database.writing() as connection:
        await connection.execute(refused)
    await here.runs.becomes(uid, RunState.SUCCEEDED)
    status = await here.until_phase("one", "Succeeded")
    assert (status["display"]["stage"], status["display"]["step"]) == ("", "0/4")


async def test_a_status_that_somebody_else_wrote_is_set_right(here: Place) -> None:
    await here.start()
    here.apply("one")
    await here.until_phase("one", "Running")
    await here.until_idle()
    here.standin.patch_status(TRAINING_RUNS, "one", {"status": {"phase": "Succeeded", "runId": "other", "stray": 1}})
    await until(lambda: here.status("one")["phase"] == "Running" and here.status("one")["runId"] == here.uid("one"))


async def test_conditions_change_their_time_only_with_their_status(
    here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    await here.start()
    uid = here.apply("one")
    await here.until_phase("one", "Running")
    old = [{**each, "lastTransitionTime": "2020-01-01T00:00:00Z"} for each in here.status("one")["conditions"]]
    here.standin.patch_status(TRAINING_RUNS, "one", {"status": {"conditions": old}})
    await here.runs.becomes(uid, RunState.SUCCEEDED)
    await here.until_phase("one", "Succeeded")
    assert here.condition("one", "Accepted")["lastTransitionTime"] == "2020-01-01T00:00:00Z"
    assert here.condition("one", "Complete")["lastTransitionTime"] > "2020-01-01T00:00:00Z"
