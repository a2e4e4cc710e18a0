"""Who runs when: fairness between callers and jobs, cancelled and drained queues, and what waiting costs."""

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sandboxed import ONE_AGENT, detail, failure, metrics, stdin_tests, wait_until
from sandboxed.half_sent import HalfSent
from troupe.v1 import sandbox_pb2

SLEEPER = "import time; time.sleep(300)"
LONG = sandbox_pb2.Limits(wall_seconds=600)
GRPC_PREFIX = 5
"""Bytes ahead of every message."""


@pytest.fixture(scope="module")
def narrow(launch, tmp_path_factory):
    """A service with one slot of each kind."""
    folder = tmp_path_factory.mktemp("narrow")
    running = launch(folder, "--workflow-slots", "1", "--test-slots", "1", "--test-queue", "200")
    yield running
    assert running.stop() == 0


def as_run(name):
    return (("troupe-run-id", name),)


def queued(server, pool):
    return metrics(server.metrics)[f'troupe_sandbox_queued{{pool="{pool}"}}']


def running(server, pool):
    return metrics(server.metrics)[f'troupe_sandbox_running{{pool="{pool}"}}']


def idle(server):
    return sum(value for name, value in metrics(server.metrics).items() if "running" in name or "queued" in name) == 0


def test_one_callers_many_jobs_do_not_delay_anothers_one(narrow):
    ended: list[str] = []
    job = stdin_tests("import time; time.sleep(0.02); print(1)", *[("", "1")] * 2)

    def run(name):
        list(narrow.stub.RunTests(job, metadata=as_run(name), timeout=60))
        ended.append(name)

    with ThreadPoolExecutor(61) as threads:
        for _ in range(60):
            threads.submit(run, "many")
        wait_until(lambda: queued(narrow, "test_job") > 30, "the queue fills")
        threads.submit(run, "one").result()
        before = ended.index("one")
    # It waits for the case that runs and takes turns from then on.
    assert before < 30, ended
    wait_until(lambda: idle(narrow), "all slots come back")


def test_a_short_job_does_not_wait_behind_a_long_one(narrow):
    ended: list[str] = []

    def run(name, count):
        list(narrow.stub.RunTests(stdin_tests("print(1)", *[("", "1")] * count), timeout=60))
        ended.append(name)

    long = threading.Thread(target=run, args=("long", 300))
    long.start()
    wait_until(lambda: running(narrow, "test_case") > 0, "the long job runs")
    run("short", 2)
    long.join()
    assert ended == ["short", "long"]


def test_cancelling_frees_the_place_in_the_queue_and_the_slot_at_once(narrow):
    held = narrow.stub.RunTests(stdin_tests(SLEEPER, ("", ""), limits=LONG), timeout=60)
    wait_until(lambda: running(narrow, "test_case") == 1, "it runs")
    # A caller's first jobs are active and share the slot; those beyond wait.
    behind = [narrow.stub.RunTests(stdin_tests(SLEEPER, ("", ""), limits=LONG), timeout=60) for _ in range(40)]
    wait_until(lambda: queued(narrow, "test_job") > 0, "they wait")
    for call in behind:
        call.cancel()
    wait_until(lambda: queued(narrow, "test_job") == 0 and running(narrow, "test_job") == 1, "they are gone")
    held.cancel()
    wait_until(lambda: idle(narrow), "the slot is free")
    _, outcome = narrow.run_tests(stdin_tests("print(1)", ("", "1")))
    assert outcome.passed


def test_a_full_queue_of_one_caller_is_refused_with_a_delay_and_open_to_others(narrow):
    job = stdin_tests(SLEEPER, ("", ""), limits=LONG)
    before = metrics(narrow.metrics)['troupe_sandbox_refused_total{pool="test_job"}']
    held = [narrow.stub.RunTests(job, metadata=as_run("full"), timeout=60) for _ in range(216)]
    wait_until(lambda: queued(narrow, "test_job") == 200, "the queue is full")
    error = failure(narrow.stub.RunTests(job, metadata=as_run("full"), timeout=60))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "of yours as many as may" in error.details()
    delay = detail(error, error_details_pb2.RetryInfo)
    assert delay is not None
    assert delay.retry_delay.ToMilliseconds() > 0
    other = narrow.stub.RunTests(job, metadata=as_run("other"), timeout=60)
    wait_until(lambda: running(narrow, "test_job") == 17, "another caller is let in")
    for call in [*held, other]:
        call.cancel()
    wait_until(lambda: idle(narrow), "all are gone")
    assert metrics(narrow.metrics)['troupe_sandbox_refused_total{pool="test_job"}'] == before + 1


def test_large_requests_of_one_caller_are_refused_before_they_fill_the_memory(launch, tmp_path):
    server = launch(tmp_path, "--test-slots", "1", "--request-memory", "2")

    def held():
        return metrics(server.metrics)["troupe_sandbox_request_bytes"]

    job = stdin_tests(SLEEPER, ("x" * 300_000, ""), limits=LONG)
    running_or_waiting = [server.stub.RunTests(job, metadata=as_run("full"), timeout=60) for _ in range(3)]
    wait_until(lambda: held() == 3 * (GRPC_PREFIX + job.ByteSize()), "they are held")
    error = failure(server.stub.RunTests(job, metadata=as_run("full"), timeout=60))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert f"of yours that come, wait and run hold {held():.0f} bytes of {1 << 20}" in error.details()
    assert "--request-memory" in error.details()
    assert detail(error, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() > 0
    script = sandbox_pb2.RunWorkflowRequest(start=sandbox_pb2.StartWorkflow(script="#" * 300_000))
    script.start.task_type = 1
    assert failure(server.stub.RunWorkflow(iter([script]), metadata=as_run("full"), timeout=60)).code() == error.code()
    # Others have room; and one that is alone is taken, however large it is.
    small = stdin_tests("print(1)", ("", "1"))
    other = server.stub.RunTests(small, metadata=as_run("other"), timeout=60)
    wait_until(lambda: held() == 3 * (GRPC_PREFIX + job.ByteSize()) + GRPC_PREFIX + small.ByteSize(), "it waits too")
    large = stdin_tests("print(1)", ("x" * 8_000_000, "1"))
    for call in running_or_waiting:
        call.cancel()
    *_, last = other
    assert last.outcome.passed
    wait_until(lambda: held() == 0, "their room is free")
    *_, last = server.stub.RunTests(large, metadata=as_run("full"), timeout=60)
    assert last.outcome.passed
    assert server.stop() == 0


def test_more_cases_than_there_may_be_are_refused_before_they_take_memory(launch, tmp_path):
    server = launch(tmp_path)

    def peak():
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024

    # Empty cases have two bytes each, and would have 48 of memory: 16 MiB of them are the field `stdin_tests`.
    cases = b"\x0a\x00" * (8 << 20)
    call = server.channel.unary_stream("/troupe.v1.Sandbox/RunTests")
    before = peak()
    error = failure(call(b"\x1a\x80\x80\x80\x08" + cases, timeout=60))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert peak() - before < 100 << 20
    assert "stdin_tests.cases: has 8388608 entries; at most 10000" in error.details()
    assert server.stop() == 0


def test_waiting_for_a_tools_slot_is_not_the_scripts_wall_time(launch, tmp_path):
    slots = 2
    server = launch(tmp_path, "--tool-slots", str(slots))
    assert metrics(server.metrics)['troupe_sandbox_slots{pool="tool"}'] == slots
    script = "from workflow.tools import run_python\nrun_python('import time; time.sleep({})', None)"
    limits = sandbox_pb2.Limits(wall_seconds=60)
    with ThreadPoolExecutor(slots + 1) as threads:
        holders = [threads.submit(server.run_workflow, script.format(8), limits=limits) for _ in range(slots)]
        wait_until(lambda: running(server, "tool") == slots, "all tool slots are taken")
        short = sandbox_pb2.Limits(wall_seconds=3)
        waiter = threads.submit(server.run_workflow, script.format(0), limits=short).result().outcome
        assert all(each.result().outcome.verdict == sandbox_pb2.VERDICT_OK for each in holders)
    assert waiter.verdict == sandbox_pb2.VERDICT_OK, waiter
    assert waiter.use.wall_seconds > 3
    assert waiter.use.wall_seconds - waiter.use.waiting_seconds < 3
    assert server.stop() == 0


def test_waiting_behind_tools_of_its_own_is_the_scripts_wall_time(launch, tmp_path):
    server = launch(tmp_path, "--tool-slots", "1")
    script = """
import threading
from workflow.tools import run_python
for _ in range(8): threading.Thread(target=run_python, args=("import time; time.sleep(1)", None)).start()
"""
    outcome = server.run_workflow(script, limits=sandbox_pb2.Limits(wall_seconds=2)).outcome
    assert outcome.verdict == sandbox_pb2.VERDICT_WALL_LIMIT, outcome
    assert outcome.use.waiting_seconds < 1
    assert server.stop() == 0


def test_a_shutdown_refuses_at_once_whoever_still_waits(launch, tmp_path):
    server = launch(tmp_path, "--workflow-slots", "1", "--drain-seconds", "1")
    requests = [server.start_message(SLEEPER)]
    streams = [server.stub.RunWorkflow(iter(requests), timeout=60) for _ in range(3)]
    wait_until(lambda: queued(server, "workflow") == 2, "two wait")
    server.process.send_signal(signal.SIGTERM)
    assert {failure(stream).code() for stream in streams} == {grpc.StatusCode.UNAVAILABLE}
    server.channel.close()
    assert server.process.wait(timeout=30) == 0


def test_waits_and_faults_are_metrics(narrow):
    narrow.run_tests(stdin_tests("print(1)", ("", "1")))
    samples = metrics(narrow.metrics)
    count = samples['troupe_sandbox_wait_seconds_count{pool="test_case"}']
    assert count >= 1
    assert samples['troupe_sandbox_wait_seconds_bucket{pool="test_case",le="+Inf"}'] == count
    assert samples['troupe_sandbox_programs_total{kind="stdin",verdict="ok"}'] >= 1


def test_halves_of_requests_count_as_they_come_and_are_refused_beyond_what_there_is(launch, tmp_path):
    server = launch(tmp_path, "--request-memory", "2")

    def held():
        return metrics(server.metrics)["troupe_sandbox_request_bytes"]

    def half_sent(run):
        return HalfSent(server.target, "/troupe.v1.Sandbox/RunTests", 30 << 20, as_run(run))

    first, second = half_sent("a"), half_sent("a")
    first.send(400_000)
    second.send(500_000)
    wait_until(lambda: held() == 900_000 + 2 * GRPC_PREFIX, "both halves are counted")
    error = failure(server.stub.RunTests(stdin_tests("#" * 200_000, ("", "")), metadata=as_run("a"), timeout=60))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "of yours that come, wait and run hold 900010 bytes" in error.details()
    # Another caller is not held up, and a half that itself no longer fits is let go of.
    *_, last = server.stub.RunTests(stdin_tests("print(1)", ("", "1")), metadata=as_run("b"), timeout=60)
    assert last.outcome.passed
    first.send(200_000)
    wait_until(lambda: held() == 500_000 + GRPC_PREFIX, "the larger of the two is refused")
    assert metrics(server.metrics)["troupe_sandbox_no_room_total"] == 2
    second.close()
    wait_until(lambda: held() == 0, "who goes takes the rest along")
    first.close()
    assert server.stop() == 0


def test_a_call_of_one_message_is_given_no_second_one_and_questions_are_small_and_free(launch, tmp_path):
    server = launch(tmp_path, "--request-memory", "1")

    def held():
        return metrics(server.metrics)["troupe_sandbox_request_bytes"]

    full = HalfSent(server.target, "/troupe.v1.Sandbox/RunTests", 30 << 20, as_run("a"))
    full.send(700_000)
    wait_until(lambda: held() == 700_000 + GRPC_PREFIX, "it is counted")
    second = HalfSent(server.target, "/troupe.v1.Sandbox/RunTests", 0, as_run("a"))
    second.begin(30 << 20)
    second.send(300_000)
    second.wait_for_its_end()
    assert held() == 700_000 + GRPC_PREFIX
    HalfSent(server.target, "/grpc.health.v1.Health/Check", 1 << 20, as_run("a")).wait_for_its_end()
    request = health_pb2.HealthCheckRequest(service="troupe.v1.Sandbox")
    answer = health_pb2_grpc.HealthStub(server.channel).Check(request, timeout=60)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    full.close()
    wait_until(lambda: held() == 0, "nothing is held any more")
    assert server.stop() == 0


def test_a_caller_that_reads_no_results_holds_no_slot(narrow):
    stuck = narrow.stub.RunTests(stdin_tests("print('x' * 3000)", *[("", "y")] * 1500), metadata=as_run("stuck"))
    next(stuck)
    other = stdin_tests("print(1)", *[("", "1")] * 3)
    *_, last = narrow.stub.RunTests(other, metadata=as_run("other"), timeout=60)
    assert last.outcome.passed
    wait_until(lambda: running(narrow, "test_case") == 0, "all its cases have run, read or not")
    results = sum(each.HasField("case_result") for each in stuck)
    assert results == 1500 - 1
    wait_until(lambda: idle(narrow), "it has ended")


def test_a_reply_is_taken_whatever_other_requests_hold(launch, tmp_path):
    server = launch(tmp_path, "--request-memory", "1")
    halves = []

    def answer(_):
        halves.append(HalfSent(server.target, "/troupe.v1.Sandbox/RunTests", 30 << 20))
        halves[0].send(500_000)
        wait_until(lambda: metrics(server.metrics)["troupe_sandbox_request_bytes"] > 500_000, "the share is full")
        assert failure(server.stub.RunTests(stdin_tests("#" * 100_000, ("", "")), timeout=60)).code() == (
            grpc.StatusCode.RESOURCE_EXHAUSTED
        )
        return "x" * 200_000

    execution = server.run_workflow(ONE_AGENT, answer)
    assert execution.outcome.verdict == sandbox_pb2.VERDICT_OK
    halves[0].close()
    wait_until(lambda: metrics(server.metrics)["troupe_sandbox_request_bytes"] == 0, "nothing is held any more")
    assert server.stop() == 0
