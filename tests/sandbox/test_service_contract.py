"""The service around the programs: isolation report, bad requests, overload, drain, health, reflection, metrics."""

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from queue import SimpleQueue

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from troupe.v1 import common_pb2, sandbox_pb2

Verdict = sandbox_pb2.Verdict
SLEEPER = "import time; time.sleep(300)"


def failure(call) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as raised:
        list(call)
    return raised.value


def details(error: grpc.RpcError, kind):
    metadata = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
    for packed in status.details:
        if packed.Is(kind.DESCRIPTOR):
            unpacked = kind()
            packed.Unpack(unpacked)
            return unpacked
    raise AssertionError(f"no {kind.__name__} in {status}")


def held_script(server, script: str = SLEEPER):
    """A script that runs until its queue gets None and the stream is cancelled."""
    requests: SimpleQueue[sandbox_pb2.RunWorkflowRequest | None] = SimpleQueue()
    requests.put(server.start_message(script))
    stream = server.stub.RunWorkflow(iter(requests.get, None), timeout=60)
    return requests, stream


def test_the_report_says_what_is_in_force(server):
    report = server.stub.GetIsolation(sandbox_pb2.GetIsolationRequest())
    assert report.profile == server.profile
    assert len(report.profile_digest) == 64
    layers = {layer.name: layer for layer in report.layers}
    for name in ("rlimits", "no_new_privs", "capabilities", "landlock", "seccomp", "seccomp_listener"):
        assert layers[name].state == sandbox_pb2.LAYER_STATE_ACTIVE
        assert layers[name].errno == 0
    assert (report.workflow_slots, report.test_slots) == (8, 2)
    assert "python" in report.python


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"script": ""}, "start.script"),
        ({"script": " \n"}, "start.script"),
        ({"script": "#" * (1 << 20) + "#"}, "start.script"),
        ({"script": "print(1)\0"}, "start.script"),
        ({"task_type": common_pb2.TASK_TYPE_UNSPECIFIED}, "start.task_type"),
        ({"required_layers": ["wishful_thinking"]}, "start.required_layers[0]"),
        ({"limits": sandbox_pb2.Limits(cpu_seconds=1e9)}, "start.limits.cpu_seconds"),
        ({"limits": sandbox_pb2.Limits(wall_seconds=float("nan"))}, "start.limits.wall_seconds"),
        ({"limits": sandbox_pb2.Limits(memory_bytes=1)}, "start.limits.memory_bytes"),
        ({"tool_limits": sandbox_pb2.Limits(processes=9)}, "start.tool_limits.processes"),
        ({"max_agent_calls": 2**32 - 1}, "start.max_agent_calls"),
    ],
)
def test_a_bad_field_is_named(server, fields, field):
    request = server.start_message(**{"script": "print(1)", **fields})
    error = failure(server.stub.RunWorkflow(iter([request]), timeout=30))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert details(error, error_details_pb2.BadRequest).field_violations[0].field == field
    assert error.details().startswith(field)


def test_a_script_that_fills_its_field_but_not_its_frame_is_refused_by_name(server):
    request = server.start_message("print(1)\n" + "\n" * ((1 << 20) - 20))
    error = failure(server.stub.RunWorkflow(iter([request]), timeout=30))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "start.script" in error.details()


def test_the_first_message_must_start(server):
    reply = sandbox_pb2.RunWorkflowRequest(agent_reply=sandbox_pb2.AgentReply(call_id=1, text="x"))
    for requests in ([reply], [sandbox_pb2.RunWorkflowRequest()], []):
        error = failure(server.stub.RunWorkflow(iter(requests), timeout=30))
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    error = failure(server.stub.RunWorkflow(iter([server.start_message(SLEEPER)] * 2), timeout=30))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "start" in error.details()


@pytest.mark.parametrize(
    ("request_fields", "field"),
    [
        ({"solution": "", "assertion_tests": sandbox_pb2.AssertionTests(cases=["1"])}, "solution"),
        ({"solution": "x = 1"}, "tests"),
        ({"solution": "x = 1", "assertion_tests": sandbox_pb2.AssertionTests()}, "assertion_tests.cases"),
        ({"solution": "x = 1", "assertion_tests": sandbox_pb2.AssertionTests(cases=[" "])}, "assertion_tests.cases[0]"),
        ({"solution": "x = 1", "stdin_tests": sandbox_pb2.StdinTests(checker=1)}, "stdin_tests.cases"),
        (
            {"solution": "x = 1", "stdin_tests": sandbox_pb2.StdinTests(cases=[sandbox_pb2.StdinCase()])},
            "stdin_tests.checker",
        ),
    ],
)
def test_a_bad_set_of_tests_is_named(server, request_fields, field):
    error = failure(server.stub.RunTests(sandbox_pb2.RunTestsRequest(**request_fields), timeout=30))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert details(error, error_details_pb2.BadRequest).field_violations[0].field == field


def test_a_layer_that_the_profile_lacks_stops_the_job(server):
    request = server.start_message("print(1)", required_layers=["network_namespace"])
    if server.profile == "full":
        assert (
            server.run_workflow("print(1)", required_layers=["network_namespace"]).outcome.verdict == Verdict.VERDICT_OK
        )
        return
    error = failure(server.stub.RunWorkflow(iter([request]), timeout=30))
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "network_namespace" in error.details()


def test_a_service_that_lacks_a_required_layer_does_not_start(launch, tmp_path):
    with pytest.raises(RuntimeError, match="layer pid_namespace is not part of profile pod"):
        launch(tmp_path, "--require-layers", "pid_namespace", profile="pod", check=False)


def test_beyond_slots_and_queue_the_caller_is_told_when_to_come_back(launch, tmp_path):
    server = launch(tmp_path, "--workflow-slots", "1", "--test-slots", "1", "--drain-seconds", "0.2")
    held = [held_script(server) for _ in range(5)]
    deadline = time.monotonic() + 20
    while 'troupe_sandbox_queued{pool="workflow"} 4' not in read_metrics(server):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    error = failure(server.stub.RunWorkflow(iter([server.start_message(SLEEPER)]), timeout=30))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    delay = details(error, error_details_pb2.RetryInfo).retry_delay
    pushback = int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"])
    assert pushback == delay.seconds * 1000 + delay.nanos // 1_000_000 > 0
    for requests, stream in held:
        stream.cancel()
        requests.put(None)
    assert server.stop() == 0


def read_metrics(server) -> str:
    with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=10) as response:
        return response.read().decode()


def test_metrics_health_and_reflection_are_served(server):
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    server.run_workflow("print(1)")
    metrics = read_metrics(server)
    assert 'troupe_sandbox_programs_total{kind="workflow",verdict="ok"}' in metrics
    assert f'troupe_sandbox_profile{{profile="{server.profile}"}} 1' in metrics
    health = health_pb2_grpc.HealthStub(server.channel)
    for service in ("", "troupe.v1.Sandbox"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    services = ProtoReflectionDescriptorDatabase(server.channel).get_services()
    assert {"troupe.v1.Sandbox", "grpc.health.v1.Health"} <= set(services)


def test_a_draining_service_finishes_what_runs_and_takes_nothing_new(launch, tmp_path):
    server = launch(tmp_path, "--drain-seconds", "20")
    requests, stream = held_script(server, "import time; time.sleep(1.5); print('finished')")
    assert next(stream).HasField("started")
    server.process.send_signal(signal.SIGTERM)
    (outcome,) = list(stream)
    requests.put(None)
    assert outcome.outcome.stdout == "finished\n"
    server.channel.close()
    assert server.process.wait(timeout=20) == 0
    assert not (tmp_path / "ready.json").exists()
    assert list(server.work_directory.iterdir()) == []


def test_after_the_grace_a_script_ends_with_an_error_and_never_with_a_verdict(launch, tmp_path):
    server = launch(tmp_path, "--drain-seconds", "0.3")
    requests, stream = held_script(server)
    assert next(stream).HasField("started")
    children = server.children()
    server.process.send_signal(signal.SIGTERM)
    error = failure(stream)
    requests.put(None)
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    server.channel.close()
    assert server.process.wait(timeout=20) == 0
    assert not any(map(server.is_alive, children))


@pytest.mark.parametrize("profile", ["full", "pod"])
def test_nothing_survives_a_killed_service(launch, tmp_path, profile):
    server = launch(tmp_path, profile=profile)
    requests, stream = held_script(server, "import os, time\nos.fork()\ntime.sleep(300)")
    assert next(stream).HasField("started")
    tests = sandbox_pb2.StdinTests(cases=[sandbox_pb2.StdinCase()], checker=sandbox_pb2.CHECKER_EXACT)
    testing = server.stub.RunTests(sandbox_pb2.RunTestsRequest(solution=SLEEPER, stdin_tests=tests), timeout=60)
    # Two zygotes or more, a keeper, a script with its child, a test.
    deadline = time.monotonic() + 20
    while len(server.children()) < 6 and time.monotonic() < deadline:
        time.sleep(0.02)
    children = server.children()
    assert len(children) >= 6
    server.process.kill()
    server.process.wait()
    failure(stream)
    failure(testing)
    requests.put(None)
    deadline = time.monotonic() + 10
    while any(map(server.is_alive, children)):
        assert time.monotonic() < deadline, [child for child in children if server.is_alive(child)]
        time.sleep(0.02)


def test_the_service_ends_with_its_parent(tmp_path):
    ready = tmp_path / "ready.json"
    launch = (
        "import subprocess, sys, time, pathlib\n"
        "subprocess.Popen([sys.executable, '-m', 'troupe_sandbox', '--listen', '127.0.0.1:0', '--die-with-parent',"
        f" '--drain-seconds', '0', '--log', 'error', '--work-dir', {str(tmp_path)!r}, '--ready-file', {str(ready)!r}])\n"
        f"while not pathlib.Path({str(ready)!r}).exists(): time.sleep(0.02)\n"
    )
    subprocess.run([sys.executable, "-c", launch], check=True, timeout=60, env=os.environ)
    deadline = time.monotonic() + 15
    # The last thing that a service does is to take back its ready file.
    while ready.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_many_scripts_at_once_do_not_disturb_each_other(server):
    outcomes: dict[int, str] = {}

    def run(number: int) -> None:
        outcomes[number] = server.run_workflow(f"print({number} ** 2)").outcome.stdout

    threads = [threading.Thread(target=run, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == {number: f"{number**2}\n" for number in range(24)}
