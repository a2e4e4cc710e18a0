"""Eval jobs over the public API: numbers, bad input, ids, pages, watching, cancelling."""

import asyncio
import gzip
import sqlite3
from typing import Any

import grpc
import pytest
from orchestrated.models import RIGHT, SINGLE, WRONG
from orchestrated.world import Backends, World, eval_request, math_task, refused
from troupe.v1 import designer_pb2, evaluation_pb2, policy_pb2
from troupe_contracts.errors import Exhausted, Internal, Unavailable
from troupe_orchestrator import event_feed
from troupe_orchestrator.evaluation import jobs
from troupe_orchestrator.evaluation.job_log import JobLog
from troupe_orchestrator.rollout import faults as rollout_faults
from troupe_orchestrator.store.outages import _AWAY, StoreUnavailableError

pytestmark = pytest.mark.asyncio(loop_scope="session")

VOTE = """
from workflow import AgentNode, Workflow
from workflow.nodes import EnsembleNode
flow = Workflow()
flow.add_node(EnsembleNode("Vote", [AgentNode(f"Solver{n}", "Solve it.") for n in (1, 2)]))
flow.run(question)
"""
INVALID = designer_pb2.Design(
    text="none",
    problems=[designer_pb2.ScriptProblem(kind=designer_pb2.SCRIPT_PROBLEM_KIND_NO_SCRIPT, message="no script")],
)
Get = evaluation_pb2.GetEvalJobRequest
Resume = evaluation_pb2.ResumeEvalJobRequest


def by_name(request: policy_pb2.GenerateRequest) -> str:
    """Right, unless the question names another outcome."""
    said = "\n".join(message.content for message in request.messages)
    return WRONG if "wrong" in said else "I do not know" * 50 if "unread" in said else RIGHT


@pytest.fixture(autouse=True)
def _agents(shared: World) -> None:
    shared.backends.designer.otherwise = [SINGLE]
    shared.backends.policy.reply = by_name


async def held(shared: World) -> asyncio.Event:
    """Makes every agent wait for the event."""
    gate = asyncio.Event()

    async def waits(request: policy_pb2.GenerateRequest) -> str:
        await gate.wait()
        return RIGHT

    shared.backends.policy.reply = waits
    return gate


async def test_a_summary_counts_what_happened(shared: World) -> None:
    rows = [
        math_task("right-1", family="calc"),
        math_task("half-1", family="calc"),
        math_task("wrong-1", family="word"),
        math_task("unread-1", family="word"),
    ]
    shared.backends.designer.scripts[str(rows[0]["question"])] = [SINGLE, VOTE]
    shared.backends.designer.scripts[str(rows[1]["question"])] = [SINGLE, INVALID]
    job = await shared.evaluate(*rows, samples=2)
    summary = job.summary
    assert (job.problems, job.samples, job.items_done, job.items_total) == (4, 2, 8, 8)
    # Problems: 1, 1/2, 0, 0; seven of eight designs can be run; five answers can be read, three of them right.
    assert summary.success == pytest.approx(1.5 / 4)
    assert summary.success_low <= summary.success <= summary.success_high
    assert summary.valid_scripts == pytest.approx(7 / 8)
    assert summary.parseable == pytest.approx(5 / 8)
    assert summary.success_parseable == pytest.approx(3 / 5)
    assert (summary.faults, summary.generated_tokens > 0) == (0, True)
    calc, word = summary.groups
    assert (calc.family, calc.problems, calc.success) == ("calc", 2, pytest.approx(0.75))
    assert dict(calc.patterns) == {"single": 2, "vote": 1, "invalid": 1}
    assert dict(calc.pattern_successes) == {"single": 2, "vote": 1}
    assert (word.family, word.problems, word.success) == ("word", 2, 0.0)
    assert {item.designer_version.number for item in await shared.items(job.job_id)} == {0}


async def test_a_malformed_line_is_named_by_file_and_line_and_the_others_run(shared: World) -> None:
    job = await shared.evaluate(math_task("one"), "{not json", math_task("two"), '{"id": "x"}')
    assert [(error.file, error.line) for error in job.dataset_errors] == [("held.jsonl", 2), ("held.jsonl", 4)]
    assert "not JSON" in job.dataset_errors[0].message
    assert (job.state, job.items_done, job.summary.success) == (evaluation_pb2.EVAL_STATE_SUCCEEDED, 2, 1.0)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"dataset": b""}, "dataset"),
        ({"dataset": b"\n\n"}, "dataset"),
        ({"dataset": b"\x00\xff\xfe not text"}, "dataset"),
        ({"dataset": b"{not json\n"}, "dataset"),
        ({"dataset": b'{"other": 1}\n'}, "dataset"),
        ({"dataset": gzip.compress(b"{}" * 100)[:-12]}, "dataset"),
        ({"dataset": b"[" * 100_000}, "dataset"),
        ({"format": "no-such-format"}, "format"),
        ({"samples": 0}, "samples"),
        ({"samples": 257}, "samples"),
        ({"job_id": "Not An Id"}, "job_id"),
        ({"job_id": "line\n"}, "job_id"),
        ({"mode": 9}, "mode"),
        ({"mode": evaluation_pb2.EVAL_MODE_MAJORITY, "votes": 1}, "votes"),
        ({"mode": evaluation_pb2.EVAL_MODE_MAJORITY, "votes": 33}, "votes"),
        ({"votes": 3}, "votes"),
        ({"mode": evaluation_pb2.EVAL_MODE_FIXED_WORKFLOW}, "script"),
        ({"mode": evaluation_pb2.EVAL_MODE_SINGLE_AGENT, "script": SINGLE}, "script"),
    ],
)
async def test_a_bad_field_of_a_job_is_refused_by_name(shared: World, fields: dict[str, object], field: str) -> None:
    with refused("INVALID_ARGUMENT", field=field):
        await shared.evaluation.CreateEvalJob(eval_request(math_task("one"), **fields))


async def test_the_same_id_and_request_are_the_same_job_and_another_request_is_refused(shared: World) -> None:
    request = eval_request(math_task("one"), job_id="same")
    first, second = await asyncio.gather(*(shared.evaluation.CreateEvalJob(request) for _ in range(2)))
    assert first.create_time == second.create_time
    await shared.watched("same")
    again = await shared.evaluation.CreateEvalJob(request)
    assert (again.state, again.create_time) == (evaluation_pb2.EVAL_STATE_SUCCEEDED, first.create_time)
    for other in (
        eval_request(math_task("one"), job_id="same", samples=2),
        eval_request(math_task("2"), job_id="same"),
    ):
        with refused("FAILED_PRECONDITION", "same", "another"):
            await shared.evaluation.CreateEvalJob(other)


@pytest.mark.parametrize("again", [True, False], ids=["created again", "by itself"])
async def test_a_job_whose_creation_was_cut_off_runs(
    shared: World, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    async def away(*_: object) -> None:
        raise StoreUnavailableError("the store", _AWAY, ConnectionError("refused"))

    monkeypatch.setattr(jobs, "_STORE_PAUSE_SECONDS", 60.0 if again else 0.2)
    name = f"cut-off-{again}".lower()
    request = eval_request(math_task(name), job_id=name)
    with monkeypatch.context() as patched, refused("UNAVAILABLE", "the store"):
        patched.setattr(JobLog, "open", away)
        await shared.evaluation.CreateEvalJob(request)
    with refused("UNAVAILABLE", "ask again"):
        await shared.watched(name)
    if again:
        await shared.evaluation.CreateEvalJob(request)
    else:
        await asyncio.sleep(0.5)
    events = await shared.watched(name)
    assert events[-1].job.state == evaluation_pb2.EVAL_STATE_SUCCEEDED


async def test_a_client_that_gives_up_on_a_creation_or_a_resumption_leaves_a_job_that_runs(
    shared: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = JobLog.open

    async def slowly(*arguments: Any) -> JobLog:
        await asyncio.sleep(0.4)
        return await opened(*arguments)

    async def never(_: object) -> str:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    request = eval_request(math_task("abandoned"), job_id="abandoned")
    reply, shared.backends.policy.reply = shared.backends.policy.reply, never
    monkeypatch.setattr(JobLog, "open", slowly)
    with refused("DEADLINE_EXCEEDED"):
        await shared.evaluation.CreateEvalJob(request, timeout=0.2)
    await asyncio.sleep(0.5)
    job = await shared.evaluation.CancelEvalJob(evaluation_pb2.CancelEvalJobRequest(job_id="abandoned"))
    assert job.state == evaluation_pb2.EVAL_STATE_CANCELLED
    shared.backends.policy.reply = reply
    with refused("DEADLINE_EXCEEDED"):
        await shared.evaluation.ResumeEvalJob(Resume(job_id="abandoned"), timeout=0.2)
    await asyncio.sleep(0.5)
    events = await shared.watched("abandoned")
    assert events[-1].job.state == evaluation_pb2.EVAL_STATE_SUCCEEDED


async def test_an_unknown_job_is_not_found_and_an_empty_id_is_refused(shared: World) -> None:
    for call, request in (
        (shared.evaluation.GetEvalJob, evaluation_pb2.GetEvalJobRequest),
        (shared.evaluation.CancelEvalJob, evaluation_pb2.CancelEvalJobRequest),
        (shared.evaluation.ListEvalItems, evaluation_pb2.ListEvalItemsRequest),
    ):
        with refused("NOT_FOUND", "nobody"):
            await call(request(job_id="nobody"))
        with refused("INVALID_ARGUMENT", field="job_id"):
            await call(request())
    with refused("NOT_FOUND", "nobody"):
        await shared.watched("nobody")


async def test_a_cancelled_job_keeps_its_finished_items_and_ends_its_watchers(shared: World) -> None:
    await held(shared)
    shared.backends.designer.scripts["Nothing to run?"] = [INVALID]
    request = eval_request(math_task("one") | {"question": "Nothing to run?"}, math_task("two"), job_id="cancelled")
    await shared.evaluation.CreateEvalJob(request)
    watching = asyncio.create_task(shared.watched("cancelled"))
    while not (await shared.evaluation.GetEvalJob(Get(job_id="cancelled"))).items_done:
        await asyncio.sleep(0.01)
    job = await shared.evaluation.CancelEvalJob(evaluation_pb2.CancelEvalJobRequest(job_id="cancelled"))
    assert (job.state, job.items_done) == (evaluation_pb2.EVAL_STATE_CANCELLED, 1)
    assert (await watching)[-1].job.state == evaluation_pb2.EVAL_STATE_CANCELLED
    again = await shared.evaluation.CancelEvalJob(evaluation_pb2.CancelEvalJobRequest(job_id="cancelled"))
    assert again == job


async def test_a_job_whose_client_gave_up_cancelling_it_is_cancelled(shared: World) -> None:
    await held(shared)
    await shared.evaluation.CreateEvalJob(eval_request(math_task("one"), job_id="given-up"))
    while not shared.backends.policy.requests:
        await asyncio.sleep(0.01)
    call = shared.evaluation.CancelEvalJob(evaluation_pb2.CancelEvalJobRequest(job_id="given-up"))
    await asyncio.sleep(0.002)
    call.cancel()
    shared.backends.policy.reply = by_name
    await shared.evaluation.CancelEvalJob(evaluation_pb2.CancelEvalJobRequest(job_id="given-up"))
    job = await shared.evaluation.GetEvalJob(Get(job_id="given-up"))
    assert job.state == evaluation_pb2.EVAL_STATE_CANCELLED


async def test_a_watch_goes_on_after_an_event_id_with_exactly_what_was_missed(shared: World) -> None:
    job = await shared.evaluate(math_task("one"), math_task("two"), samples=2, job_id="watched")
    events = await shared.watched("watched")
    assert [event.event_id for event in events] == list(range(1, len(events) + 1))
    told = [(item.problem_id, item.sample) for event in events for item in event.items]
    assert sorted(told) == [("one", 0), ("one", 1), ("two", 0), ("two", 1)]
    assert [event.job.items_done for event in events] == [
        sum(len(event.items) for event in events[:count]) for count in range(1, len(events) + 1)
    ]
    assert (events[-1].job.state, events[-1].job.summary) == (job.state, job.summary)
    for after in range(len(events) + 1):
        assert await shared.watched("watched", after=after) == events[after:]
    assert await shared.watched("watched", after=2**64 - 1) == []


async def test_a_watcher_that_is_slow_holds_nobody_up_and_misses_nothing(
    shared: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_feed, "WINDOW", 2)
    gate = await held(shared)
    rows = [math_task(f"slow-{number}") for number in range(12)]
    await shared.evaluation.CreateEvalJob(eval_request(*rows, job_id="slow"))
    slow = shared.evaluation.WatchEvalJob(evaluation_pb2.WatchEvalJobRequest(job_id="slow"), timeout=60)
    seen = [await slow.read()]
    fast = asyncio.create_task(shared.watched("slow"))
    gate.set()
    events = await fast
    while (event := await slow.read()) is not grpc.aio.EOF:
        seen.append(event)
    assert seen == events
    assert sum(len(event.items) for event in events) == 12


async def test_what_hinders_a_job_is_told_to_its_watchers_and_stored(
    shared: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout_faults, "NOTICE_SECONDS", 0.05)
    full = [Exhausted("the queue is full", 0.1) for _ in range(2)]

    def reply(request: policy_pb2.GenerateRequest) -> str:
        if "broken" in "".join(message.content for message in request.messages):
            raise Internal("the engine fell over")
        if full:
            raise full.pop()
        return RIGHT

    shared.backends.policy.reply = reply
    # Each item meets its fault in each attempt: one event for all of a kind.
    rows = [math_task("well"), math_task("broken-1"), math_task("broken-2")]
    job = await shared.evaluate(*rows, job_id="hindered")
    assert (job.items_done, job.items_faulted, job.summary.coverage) == (3, 2, pytest.approx(1 / 3))
    events = await shared.watched("hindered")
    told = {event.condition.reason: event for event in events if event.HasField("condition")}
    assert sum(event.HasField("condition") for event in events) == len(told) == 2
    for reason, text in (("ExecutorFull", "the queue is full"), ("InfrastructureFault", "the engine fell over")):
        condition = told[reason].condition
        assert condition.message.startswith("executor: "), condition
        assert text in condition.message
        assert condition.remedy
        assert not told[reason].items
    assert [event.event_id for event in events] == list(range(1, len(events) + 1))
    assert events[-1].job.state == evaluation_pb2.EVAL_STATE_SUCCEEDED


async def test_jobs_and_items_are_listed_in_pages(shared: World) -> None:
    for number in range(3):
        await shared.evaluate(math_task("one"), job_id=f"page-{number}")
    names, token = [], ""
    while len(names) < 3:
        page = await shared.evaluation.ListEvalJobs(evaluation_pb2.ListEvalJobsRequest(page_size=1, page_token=token))
        names += [job.job_id for job in page.jobs]
        token = page.next_page_token
    assert names == ["page-2", "page-1", "page-0"]
    job = await shared.evaluate(math_task("a/b"), math_task("c"), samples=2, job_id="items")
    found, token = [], ""
    for _ in range(job.items_total):
        items = await shared.evaluation.ListEvalItems(
            evaluation_pb2.ListEvalItemsRequest(job_id="items", page_size=1, page_token=token)
        )
        found += [(item.problem_id, item.sample) for item in items.items]
        token = items.next_page_token
    assert (found, token) == ([("a/b", 0), ("a/b", 1), ("c", 0), ("c", 1)], "")


@pytest.mark.parametrize("token", ["nonsense", "x/y", "/", "99999999999999999999/x"])
async def test_a_page_token_that_no_list_gave_is_refused_by_field(shared: World, token: str) -> None:
    await shared.evaluate(math_task("one"), job_id="tokens")
    with refused("INVALID_ARGUMENT", field="page_token"):
        await shared.evaluation.ListEvalItems(evaluation_pb2.ListEvalItemsRequest(job_id="tokens", page_token=token))
    if not token[0].isdigit():
        with refused("INVALID_ARGUMENT", field="page_token"):
            await shared.evaluation.ListEvalJobs(evaluation_pb2.ListEvalJobsRequest(page_token=token))
    with refused("INVALID_ARGUMENT", field="page_size"):
        await shared.evaluation.ListEvalJobs(evaluation_pb2.ListEvalJobsRequest(page_size=1001))


async def test_a_job_whose_engine_cannot_be_asked_fails_with_the_engines_words(
    open_world: object, stand_ins: Backends
) -> None:
    async with open_world(outage_seconds=0.3) as world:  # type: ignore[operator]
        await stand_ins.stop()
        job = await world.evaluate(math_task("one"))
        assert job.state == evaluation_pb2.EVAL_STATE_FAILED
        assert "UNAVAILABLE" in job.reason
        assert "AioRpcError" not in job.reason


async def test_a_job_whose_reason_the_store_refuses_fails_with_a_shorter_one(
    open_world: object, stand_ins: Backends
) -> None:
    async with open_world(outage_seconds=0.3) as world:  # type: ignore[operator]
        with sqlite3.connect(world.folder / "data" / "troupe.db") as connection:
            connection.execute(
                "CREATE TRIGGER odd BEFORE UPDATE ON eval_jobs WHEN new.reason LIKE '%UNAVAILABLE%' "
                "BEGIN SELECT RAISE(ABORT, 'no'); END"
            )
        await stand_ins.stop()
        job = await world.evaluate(math_task("one"))
        assert job.state == evaluation_pb2.EVAL_STATE_FAILED
        assert "IntegrityError" in job.reason
        assert "the orchestrator's log" in job.reason


async def test_an_item_that_ended_in_faults_of_ours_is_left_out_and_run_again_when_the_job_is_resumed(
    shared: World,
) -> None:
    broken = True

    def reply(request: policy_pb2.GenerateRequest) -> str:
        if broken and "faulty" in "".join(message.content for message in request.messages):
            raise Unavailable("gone")
        return RIGHT

    shared.backends.policy.reply = reply
    job = await shared.evaluate(math_task("fine"), math_task("faulty"), samples=2, job_id="faults")
    assert (job.state, job.items_done, job.items_faulted) == (evaluation_pb2.EVAL_STATE_SUCCEEDED, 4, 2)
    assert (job.summary.faults, job.summary.coverage, job.summary.success) == (2, 0.5, 1.0)
    before = [item.execution_id for item in await shared.items("faults") if item.problem_id == "fine"]
    last = (await shared.watched("faults"))[-1].event_id
    broken = False
    shared.backends.policy.requests.clear()
    reopened = await shared.evaluation.ResumeEvalJob(Resume(job_id="faults"))
    assert (reopened.state, reopened.items_done, reopened.items_faulted) == (evaluation_pb2.EVAL_STATE_RUNNING, 2, 0)
    events = await shared.watched("faults", after=last)
    assert [item.problem_id for event in events for item in event.items] == ["faulty", "faulty"]
    job = await shared.evaluation.GetEvalJob(Get(job_id="faults"))
    assert (job.items_done, job.summary.faults, job.summary.coverage) == (4, 0, 1.0)
    assert len(shared.backends.policy.requests) == 2
    assert [item.execution_id for item in await shared.items("faults") if item.problem_id == "fine"] == before
    with refused("FAILED_PRECONDITION", "faults", "nothing is left"):
        await shared.evaluation.ResumeEvalJob(Resume(job_id="faults"))


@pytest.mark.parametrize(
    ("fields", "pattern", "asked"),
    [
        ({"mode": evaluation_pb2.EVAL_MODE_SINGLE_AGENT}, "single", 1),
        ({"mode": evaluation_pb2.EVAL_MODE_MAJORITY, "votes": 3}, "vote", 3),
        ({"mode": evaluation_pb2.EVAL_MODE_FIXED_WORKFLOW, "script": VOTE}, "vote", 2),
    ],
)
async def test_a_mode_with_a_fixed_script_asks_no_designer(
    shared: World, fields: dict[str, object], pattern: str, asked: int
) -> None:
    shared.backends.designer.requests.clear()
    shared.backends.policy.requests.clear()
    job = await shared.evaluate(math_task("one"), **fields)
    assert (job.state, job.summary.success, job.summary.valid_scripts) == (
        evaluation_pb2.EVAL_STATE_SUCCEEDED,
        1.0,
        1.0,
    )
    assert [item.pattern for item in await shared.items(job.job_id)] == [pattern]
    assert shared.backends.designer.requests == []
    assert len(shared.backends.policy.requests) == asked
    assert (job.HasField("designer_version"), job.HasField("executor_version")) == (False, True)


async def test_the_answer_that_most_agents_gave_counts(shared: World) -> None:
    answers = iter([RIGHT, WRONG, RIGHT])
    shared.backends.policy.reply = lambda request: next(answers)
    job = await shared.evaluate(math_task("one"), mode=evaluation_pb2.EVAL_MODE_MAJORITY, votes=3)
    assert job.summary.success == 1.0
