"""EvalJobs as requests, against a stand-in API server and the real store."""

from __future__ import annotations

from pathlib import Path

import pytest
from requested.place import EVAL_JOBS, PROBLEMS, Place, until
from troupe.v1 import evaluation_pb2
from troupe_orchestrator.store.evals import EvalState


async def test_an_eval_job_is_the_call_that_it_says_and_its_numbers_are_shown(here: Place) -> None:
    await here.start()
    uid = here.evaluate("sums", mode="Majority", votes=3, sampling={"temperature": 0.5, "maxTokens": 9, "seed": 4}, limit=2,
        target={"checkpoint": {"runId": "r", "best": True, "uris": {"p": "/w"}}},
    )  # fmt: skip
    status = await here.until_phase("sums", "Running", EVAL_JOBS)
    (request,) = here.jobs.requests
    assert (request.job_id, request.dataset_name, request.dataset) == (uid, "sums.jsonl", PROBLEMS.encode())
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
    file.write_text(PROBLEMS)
    await here.start()
    here.evaluate("sums", dataset={"path": str(file)})
    await here.until_phase("sums", "Running", EVAL_JOBS)
    (request,) = here.jobs.requests
    assert (request.dataset_name, request.dataset) == ("held_out.jsonl", PROBLEMS.encode())
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
    here.evaluate("bad", **spec)
    status = await here.until_phase("bad", "Failed", EVAL_JOBS)
    assert said in status["reason"]


async def test_an_eval_job_is_cancelled_by_its_object_and_with_it(here: Place) -> None:
    await here.start()
    here.evaluate("cancelled")
    deleted = here.evaluate("deleted")
    await here.until_phase("cancelled", "Running", EVAL_JOBS)
    await here.until_phase("deleted", "Running", EVAL_JOBS)
    here.desire("cancelled", "Cancelled", EVAL_JOBS)
    await here.until_phase("cancelled", "Cancelled", EVAL_JOBS)
    here.standin.delete(EVAL_JOBS, "deleted")
    await until(lambda: here.has_forgotten(deleted))
    assert "Paused" not in {each["type"] for each in here.status("cancelled", EVAL_JOBS)["conditions"]}
