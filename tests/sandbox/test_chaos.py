"""SIGKILL of whatever the service is made of, with hundreds of jobs in flight: none is lost without a word."""

import os
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from sandboxed import metrics, stdin_tests, wait_until
from troupe_contracts.errors import INFRASTRUCTURE_CODES

JOBS = 200
SCRIPTS = 50
# Loose: with nothing else on the machine it is within a second (docs/sandbox.md).
SECONDS_UNTIL_BACK = 20.0
# Two turns of an agent and a tool between them.
SCRIPT = """
from workflow import AgentNode, Workflow
from workflow.tools import run_python
flow = Workflow("asks")
flow.add_node(AgentNode("solver", "You solve."))
first = flow.run(question).content
second = run_python("import time; time.sleep(0.05); print(7)", None)
print([first, second, flow.run(question).content])
"""
ANSWERS = "['42', '7', '42']\n"
# What an orchestrator tries again.
INFRASTRUCTURE = {code.name for code in INFRASTRUCTURE_CODES}


class Load:
    """Jobs in flight, solutions and scripts, and how each ended."""

    def __init__(self, server):
        self.server = server
        self.ends: Counter[str] = Counter()
        self.lock = threading.Lock()
        job = "import time; time.sleep(0.05); print(input())"
        self.request = stdin_tests(job, *[(str(number), str(number)) for number in range(3)])
        self.pool = ThreadPoolExecutor(JOBS)
        runs = [self.script, *[self.solution] * (JOBS // SCRIPTS - 1)]
        self.jobs = [self.pool.submit(self.run, runs[number % len(runs)]) for number in range(JOBS)]

    def solution(self):
        _, outcome = self.server.run_tests(self.request)
        return "passed" if outcome.passed else f"outcome {outcome}"

    def script(self):
        outcome = self.server.run_workflow(SCRIPT).outcome
        return "answered" if outcome.stdout == ANSWERS else f"outcome {outcome}"

    def run(self, job):
        end = "lost"
        try:
            end = job()
        except grpc.RpcError as error:
            end = error.code().name
        finally:
            with self.lock:
                self.ends[end] += 1

    def wait(self):
        self.pool.shutdown()
        for job in self.jobs:
            job.result()
        assert self.ends.total() == JOBS
        return self.ends


def assert_serves_again(server, since):
    """A solution is right, soon after `since`."""
    _, outcome = server.run_tests(stdin_tests("print(1)", ("", "1")))
    assert outcome.passed
    assert time.monotonic() - since < SECONDS_UNTIL_BACK


def in_flight(server):
    seen = metrics(server.metrics)
    return min(seen[f'troupe_sandbox_running{{pool="{pool}"}}'] for pool in ("test_job", "workflow")) > 20


def zygotes(server):
    """Children that are there while nothing runs."""
    return sorted(server.children())


@pytest.mark.long
@pytest.mark.parametrize("profile", ["full", "pod"])
def test_zygotes_and_programs_can_be_killed_under_load(launch, tmp_path, profile):
    server = launch(tmp_path, "--test-slots", "4", profile=profile)
    idle = set(zygotes(server))
    load = Load(server)
    wait_until(lambda: in_flight(server), "jobs run")
    killed = 0
    while killed < 8 and not all(job.done() for job in load.jobs):
        time.sleep(0.02)
        victims = server.children() - idle if killed % 2 else idle & server.children() or server.children()
        for victim in list(victims)[:1]:
            try:
                os.kill(victim, signal.SIGKILL)
                killed += 1
            except ProcessLookupError:
                continue
    ends = load.wait()
    assert ends["passed"] > 0
    assert ends["answered"] > 0, ends
    assert set(ends) <= {"passed", "answered", *INFRASTRUCTURE}, ends
    assert_serves_again(server, time.monotonic())
    assert server.stop() == 0


def test_a_killed_server_leaves_no_job_without_an_answer_and_its_successor_serves(launch, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    server = launch(first)
    address = server.target
    load = Load(server)
    wait_until(lambda: in_flight(server), "jobs run")
    children = server.children()
    server.process.kill()
    server.process.wait()
    ends = load.wait()
    assert ends["UNAVAILABLE"] > 0
    assert set(ends) <= {"passed", "answered", *INFRASTRUCTURE}, ends
    wait_until(lambda: not any(map(server.is_alive, children)), "its processes end with it")
    # What a supervisor of services does.
    restarted = time.monotonic()
    successor = launch(second, "--listen", address)
    assert_serves_again(successor, restarted)
    assert successor.stop() == 0
