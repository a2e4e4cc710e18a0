"""The sandbox's own failures, each caused: they come out as typed errors and never as a verdict."""

import os
import resource
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from sandboxed import control_groups, detail, failure, fault, metrics, stdin_tests, wait_until
from troupe.v1 import sandbox_pb2, sandbox_pb2_grpc

Verdict = sandbox_pb2.Verdict
GREEDY = "x = bytearray()\nwhile True: x += b'x' * (1 << 22)"
# Ends with a second of CPU time used, as a program does that has set itself a limit of one.
GREEDY_AT_A_SECOND = f"import time\nwhile time.process_time() < 0.7: pass\n{GREEDY}"


def job(solution="print(1)", **fields):
    return stdin_tests(solution, ("", "1"), **fields)


def assert_serves(server):
    _, outcome = server.run_tests(job())
    assert outcome.passed


@pytest.mark.parametrize("profile", ["full", "pod"])
@pytest.mark.skipif(bool(control_groups.why_not("memory")), reason=control_groups.why_not("memory"))
def test_a_kill_for_want_of_memory_around_the_sandbox_is_not_the_solutions_doing(launch, tmp_path, profile):
    with control_groups.group("memory", "sandbox-test", limit_in_bytes=400 << 20) as group:
        server = launch(tmp_path, "--workflow-slots", "2", "--test-slots", "1", profile=profile, group=group)
        limits = sandbox_pb2.Limits(memory_bytes=1 << 30, cpu_seconds=20, wall_seconds=60)
        for greedy in (GREEDY, GREEDY_AT_A_SECOND):
            error = failure(server.stub.RunTests(job(greedy, limits=limits), timeout=60))
            assert fault(error) == (grpc.StatusCode.INTERNAL, "MEMORY", "true")
            assert "raise the memory limit" in error.details()
            error = failure(server.stub.RunWorkflow(iter([server.start_message(greedy, limits=limits)]), timeout=60))
            assert fault(error) == (grpc.StatusCode.INTERNAL, "MEMORY", "true")
        # The same solution within a limit that the container can keep is the solution's own doing.
        small = sandbox_pb2.Limits(memory_bytes=64 << 20, cpu_seconds=20, wall_seconds=60)
        results, _ = server.run_tests(job(GREEDY, limits=small))
        assert results[0].verdict == Verdict.VERDICT_MEMORY_LIMIT
        assert metrics(server.metrics)['troupe_sandbox_faults_total{fault="memory"}'] == 4
        assert server.stop() == 0


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,nr_inodes=64", "none", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_under_the_work_directories_is_not_the_scripts_doing(launch, tmp_path, small_disk):
    server = launch(tmp_path, "--work-dir", str(small_disk), profile="pod")
    script = "with open('note', 'wb') as note: note.write(b'x' * 200_000)"
    assert server.run_workflow(script).outcome.verdict == Verdict.VERDICT_OK
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        fill(file)
    error = failure(server.stub.RunWorkflow(iter([server.start_message(script)]), timeout=60))
    assert fault(error) == (grpc.StatusCode.INTERNAL, "DISK", "true")
    assert "--work-dir" in error.details()
    filler.unlink()
    assert server.run_workflow(script).outcome.verdict == Verdict.VERDICT_OK
    # Without an inode no work directory can be made: nothing has run yet.
    inodes = [small_disk / f"inode-{number}" for number in range(64)]
    # What the last program held is given back once its last process is gone.
    for _ in range(20):
        with pytest.raises(OSError, match="No space"):
            touch(inodes)
        time.sleep(0.05)
    error = failure(server.stub.RunWorkflow(iter([server.start_message(script)]), timeout=60))
    assert fault(error) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "DISK", "true")
    assert detail(error, error_details_pb2.RetryInfo) is not None
    for inode in inodes:
        inode.unlink(missing_ok=True)
    assert server.run_workflow(script).outcome.verdict == Verdict.VERDICT_OK
    assert server.stop() == 0


def test_a_script_that_fills_the_disk_itself_is_told_so(launch, tmp_path, small_disk):
    server = launch(tmp_path, "--work-dir", str(small_disk), profile="pod")
    script = "for number in range(100):\n    with open(f'{number}', 'wb') as file: file.write(b'x' * 100_000)"
    limits = sandbox_pb2.Limits(output_bytes=1_000_000)
    outcome = server.run_workflow(script, limits=limits).outcome
    assert outcome.verdict == Verdict.VERDICT_OUTPUT_LIMIT
    # Who tells it first: the look at its directory, five times a second, or its own end for want of room.
    assert "its work directory h" in outcome.error
    assert server.stop() == 0


def descriptors(server):
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def first_free_descriptor(server):
    """The limit under which nothing more can be opened: there may be gaps in what is open."""
    used = {int(entry.name) for entry in Path(f"/proc/{server.process.pid}/fd").iterdir()}
    return next(number for number in range(len(used) + 1) if number not in used)


def fill(file):
    """Writes until nothing fits any more."""
    while True:
        file.write(b"x" * 4096)


def touch(files):
    for file in files:
        file.touch()


def set_limit(pid, name, value):
    hard = resource.prlimit(pid, name)[1]
    resource.prlimit(pid, name, (value, hard))


def test_without_descriptors_the_service_says_so_and_recovers(launch, tmp_path):
    server = launch(tmp_path)
    assert_serves(server)
    before = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)[0]
    in_use = descriptors(server)
    ends = []
    for spare in range(12):
        set_limit(server.process.pid, resource.RLIMIT_NOFILE, in_use + spare)
        for request in (job(), job("raise SystemExit(3)")):
            try:
                results, _ = server.run_tests(request)
                ends.append(Verdict.Name(results[0].verdict))
            except grpc.RpcError as error:
                ends.append(f"{fault(error)} {'ulimit -n' in error.details()}")
    refused = f"{(grpc.StatusCode.RESOURCE_EXHAUSTED, 'DESCRIPTORS', 'true')} True"
    assert ends[:2] == [refused, refused]
    assert set(ends) <= {refused, "VERDICT_OK", "VERDICT_RUNTIME_ERROR"}
    set_limit(server.process.pid, resource.RLIMIT_NOFILE, before)
    assert_serves(server)
    wait_until(lambda: descriptors(server) <= in_use, "descriptors are given back")
    wait_until(lambda: not zombies(server), "every process is reaped")
    assert server.stop() == 0


def zombies(server):
    children = Path(f"/proc/{server.process.pid}/task").glob("*/children")
    found = [child for listed in children for child in listed.read_text().split()]
    return [child for child in found if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z"]


def test_connections_beyond_the_descriptors_wait_and_are_served_later(launch, tmp_path):
    server = launch(tmp_path)
    before = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)[0]
    set_limit(server.process.pid, resource.RLIMIT_NOFILE, first_free_descriptor(server))
    with grpc.insecure_channel(server.target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = sandbox_pb2_grpc.SandboxStub(channel)
        waiting = stub.GetIsolation.future(sandbox_pb2.GetIsolationRequest(), timeout=60, wait_for_ready=True)
        with pytest.raises(grpc.FutureTimeoutError):
            waiting.result(timeout=1)
        set_limit(server.process.pid, resource.RLIMIT_NOFILE, before)
        assert waiting.result(timeout=60).profile
    assert server.stop() == 0


@pytest.mark.skipif(bool(control_groups.why_not("pids")), reason=control_groups.why_not("pids"))
def test_without_processes_a_fork_is_tried_again_and_then_reported(launch, tmp_path):
    with control_groups.group("pids", "sandbox-test", max=400) as group:
        server = launch(tmp_path, group=group)
        assert_serves(server)
        current = int((group / "pids.current").read_text())
        (group / "pids.max").write_text(str(current))
        error = failure(server.stub.RunTests(job(), timeout=60))
        assert fault(error) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "PROCESSES", "true")
        assert "pids.max" in error.details()
        (group / "pids.max").write_text("400")
        assert_serves(server)
        assert server.stop() == 0


# Near a whole second of CPU time, where a program might have set itself a limit, or has set itself one further on.
NEAR_A_SECOND = "while time.process_time() < 0.98: pass\ntime.sleep(60)"
KILLED_NEAR_A_SECOND = [
    f"import time\n{NEAR_A_SECOND}",
    f"import resource, time\nresource.setrlimit(resource.RLIMIT_CPU, (2, 2))\n{NEAR_A_SECOND}",
]


def has_computed(program):
    """For nearly a second, all its threads together."""
    with suppress(OSError):
        return time.clock_gettime(~program << 3 | 2) > 0.98
    return False


@pytest.mark.parametrize("program", KILLED_NEAR_A_SECOND)
def test_a_kill_from_outside_is_a_fault_also_where_the_cpu_time_is_a_whole_second(server, program):
    calls = {
        "a case alone": lambda: server.stub.RunTests(job(program), timeout=60),
        "one of two cases": lambda: server.stub.RunTests(stdin_tests(program, ("", "1"), ("", "1")), timeout=60),
        "a script": lambda: server.stub.RunWorkflow(iter([server.start_message(program)]), timeout=60),
    }
    zygotes = server.children()
    for what, call in calls.items():
        with ThreadPoolExecutor(1) as waiter:
            ended = waiter.submit(failure, call())
            wait_until(lambda: any(map(has_computed, server.children() - zygotes)), f"{what} computes")
            for found in filter(has_computed, server.children() - zygotes):
                os.kill(found, signal.SIGKILL)
        assert fault(ended.result()) == (grpc.StatusCode.INTERNAL, "KILLED", "true"), what
        wait_until(lambda: server.children() <= zygotes, f"{what}: nothing is left")


def test_a_program_that_reaches_a_cpu_limit_of_its_own_has_a_verdict_of_its_own_doing(server):
    program = "import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 1))\nwhile True: pass"
    for request in (job(program), stdin_tests(program, ("", "1"), ("", "1"))):
        results, _ = server.run_tests(request)
        assert {result.verdict for result in results.values()} == {Verdict.VERDICT_RUNTIME_ERROR}
        assert all("signal 9" in result.detail for result in results.values())
    outcome = server.run_workflow(program).outcome
    assert outcome.verdict == Verdict.VERDICT_RUNTIME_ERROR
    assert "signal 9" in outcome.error


def test_waiting_for_a_zygote_is_no_time_of_a_program(undisturbed):
    limits = sandbox_pb2.Limits(wall_seconds=1)
    for request in (job(limits=limits), stdin_tests("print(1)", ("", "1"), ("", "1"), limits=limits)):
        zygotes = undisturbed.children()
        with ThreadPoolExecutor(1) as waiter:
            try:
                for zygote in zygotes:
                    os.kill(zygote, signal.SIGSTOP)
                ended = waiter.submit(undisturbed.run_tests, request)
                time.sleep(1.5)
            finally:
                for zygote in zygotes:
                    os.kill(zygote, signal.SIGCONT)
            results, outcome = ended.result()
        assert outcome.passed, results


def test_programs_go_on_while_zygotes_are_replaced(launch, tmp_path):
    server = launch(tmp_path, "--test-slots", "2", "--programs-per-zygote", "3")
    with ThreadPoolExecutor(4) as threads:
        outcomes = [outcome for _, outcome in threads.map(server.run_tests, [job()] * 24)]
    assert all(outcome.passed for outcome in outcomes)
    assert metrics(server.metrics)["troupe_sandbox_zygotes_replaced_total"] >= 6
    wait_until(lambda: len(server.children()) == 3, "those replaced are gone")
    assert server.stop() == 0


@pytest.mark.long
def test_a_zygote_that_hangs_is_replaced(launch, tmp_path):
    server = launch(tmp_path)
    zygotes = server.children()
    for zygote in zygotes:
        os.kill(zygote, signal.SIGSTOP)
    assert_serves(server)
    assert server.run_workflow("print(1)").outcome.verdict == Verdict.VERDICT_OK
    assert metrics(server.metrics)["troupe_sandbox_zygotes_replaced_total"] == 2
    assert server.stop() == 0


def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_keeper_that_is_killed_costs_neither_its_slot_nor_leaves_its_scripts_children(launch, tmp_path):
    server = launch(tmp_path, "--workflow-slots", "1", profile="pod")
    zygotes = server.children()
    script = "import os, time\nos.fork()\ntime.sleep(600)"
    running = server.stub.RunWorkflow(iter([server.start_message(script)]), timeout=20)
    wait_until(lambda: len(server.children() - zygotes) == 3, "keeper, script and child run")
    family = server.children() - zygotes
    keeper = next(each for each in family if parent(each) == server.process.pid)
    os.kill(keeper, signal.SIGKILL)
    assert fault(failure(running)) == (grpc.StatusCode.INTERNAL, "KILLED", "true")
    wait_until(lambda: not any(map(server.is_alive, family)), "nothing is left")
    assert server.run_workflow("print(1)").outcome.verdict == Verdict.VERDICT_OK
    assert server.stop() == 0


def test_a_program_that_cannot_be_given_its_limits_is_the_sandboxs_fault(launch, tmp_path):
    """The service may open fewer files than a program; the last limit is put in force when the jail was reported."""
    server = launch(tmp_path, "--test-slots", "1", profile="pod", open_files=60)
    for request in (job(), stdin_tests("print(1)", ("", "1"), ("", "1"))):
        error = failure(server.stub.RunTests(request, timeout=60))
        assert fault(error) == (grpc.StatusCode.INTERNAL, "INTERNAL", "true")
        assert "limit" in error.details() or "open files" in error.details()
    assert server.stop() == 0


@pytest.mark.parametrize("profile", ["full", "pod"])
def test_a_program_that_somebody_outside_kills_is_a_fault_that_can_be_retried(launch, tmp_path, profile):
    server = launch(tmp_path, profile=profile)
    zygotes = server.children()
    testing = server.stub.RunTests(job("import time; time.sleep(60)"), timeout=60)
    with ThreadPoolExecutor(1) as waiter:
        ended = waiter.submit(failure, testing)
        # A solution whose process dies is started once more.
        while not ended.done():
            for program in server.children() - zygotes:
                with suppress(ProcessLookupError):
                    os.kill(program, signal.SIGKILL)
            time.sleep(0.05)
    assert fault(ended.result()) == (grpc.StatusCode.INTERNAL, "KILLED", "true")
    assert_serves(server)
    assert server.stop() == 0
