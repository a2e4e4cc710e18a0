"""A process dies between forking another and saying so: nothing that is left of it may touch a verdict, or stay."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from sandboxed import stdin_tests, tracing, wait_until
from troupe_contracts.errors import INFRASTRUCTURE_CODES

pytestmark = pytest.mark.skipif(bool(tracing.why_not()), reason=tracing.why_not())

ECHO = "print(input())"
JOBS = {
    "a case alone": stdin_tests(ECHO, ("right", "right")),
    "a compiled solution": stdin_tests(ECHO, *[(str(number), str(number)) for number in range(3)]),
}


def zygote(server, role):
    """Its process, by its command line."""
    found = [pid for pid in server.children() if role in Path(f"/proc/{pid}/cmdline").read_text().split("\0")]
    assert len(found) == 1, found
    return found[0]


def is_left(process):
    """Whether there is anything of it, be it a zombie."""
    return Path(f"/proc/{process}").exists()


def end_of(server, request):
    """How a job ends, in a word."""
    try:
        results, outcome = server.run_tests(request)
    except grpc.RpcError as error:
        return error.code()
    return "passed" if outcome.passed else results


@pytest.mark.parametrize("profile", ["full", "pod"])
def test_a_zygote_that_dies_before_it_tells_of_a_fork_costs_no_verdict(launch, tmp_path, profile):
    server = launch(tmp_path, "--test-slots", "1", profile=profile)
    for what, request in JOBS.items():
        victim = zygote(server, "code")
        tracing.watch_forks(victim)
        with ThreadPoolExecutor(1) as waiter:
            end = waiter.submit(end_of, server, request)
            untold = tracing.kill_once_forked(victim)
            assert end.result() == "passed", what
        wait_until(lambda untold=untold: not is_left(untold), f"{what}: nothing is left of the fork")
    assert server.stop() == 0


@pytest.mark.parametrize("profile", ["full", "pod"])
def test_a_zygote_that_dies_before_it_tells_of_a_script_costs_no_verdict(launch, tmp_path, profile):
    server = launch(tmp_path, "--test-slots", "1", profile=profile)
    victim = zygote(server, "workflow")
    tracing.watch_forks(victim)
    with ThreadPoolExecutor(1) as waiter:
        execution = waiter.submit(server.run_workflow, "print('once')")
        untold = tracing.kill_once_forked(victim)
        assert execution.result().outcome.stdout == "once\n"
    wait_until(lambda: not is_left(untold), "nothing is left of the fork")
    assert server.stop() == 0


@pytest.mark.parametrize("profile", ["full", "pod"])
def test_a_solution_that_dies_before_it_tells_of_a_case_leaves_none(launch, tmp_path, profile):
    server = launch(tmp_path, "--test-slots", "1", profile=profile)
    before = server.children()
    request = stdin_tests("import time\ntime.sleep(1)\nprint(input())", ("0", "0"), ("1", "1"))
    with ThreadPoolExecutor(1) as waiter:
        end = waiter.submit(end_of, server, request)
        # The solution, in a namespace its sleeper, and the first case, which sleeps.
        wait_until(lambda: len(server.children() - before) == (3 if profile == "full" else 2), "the first case runs")
        solution = min(server.children() - before)
        tracing.watch_forks(solution)
        untold = tracing.kill_once_forked(solution)
        ended = end.result()
    assert ended == "passed" or ended in INFRASTRUCTURE_CODES, ended
    wait_until(lambda: not is_left(untold), "nothing is left of the case")
    wait_until(lambda: server.children() <= before, "nothing is left of the job")
    assert server.stop() == 0
