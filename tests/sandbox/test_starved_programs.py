"""A wall limit counts what a program lets pass, not what it had no processor for: on a machine that is short of processors
the same solution gets the same verdict."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from troupe.v1 import sandbox_pb2

Verdict = sandbox_pb2.Verdict
# A second of computing, with two allowed.
COMPUTES = "import time\nwhile time.process_time() < 1: pass\nprint('right')"
SLEEPS = "import time\ntime.sleep(30)"
LIMITS = sandbox_pb2.Limits(cpu_seconds=4, wall_seconds=2, memory_bytes=64 << 20, output_bytes=100_000)
HOGS_PER_PROCESSOR = 6


@contextmanager
def _short_of_processors() -> Iterator[None]:
    # Each in a session of its own: some kernels share processors out among sessions.
    command = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    hogs = [
        subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
        for _ in range(HOGS_PER_PROCESSOR * len(os.sched_getaffinity(0)))
    ]
    try:
        for hog in hogs:
            hog.stdout.readline()
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.communicate()


KEPT = pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the kernel keeps no account of run delays")


@KEPT
@pytest.mark.parametrize(
    ("code", "verdict"),
    [(COMPUTES, Verdict.VERDICT_OK), (SLEEPS, Verdict.VERDICT_WALL_LIMIT)],
    ids=["computes", "sleeps"],
)
def test_a_wall_limit_does_not_count_what_a_program_had_no_processor_for(server, code, verdict):
    case = sandbox_pb2.StdinCase(expected_stdout="right")
    tests = sandbox_pb2.StdinTests(cases=[case], checker=sandbox_pb2.CHECKER_TOKENS)
    with _short_of_processors():
        results, _ = server.run_tests(sandbox_pb2.RunTestsRequest(solution=code, stdin_tests=tests, limits=LIMITS))
        outcome = server.run_workflow(code, limits=LIMITS).outcome
    result = results[0]
    if code == COMPUTES:
        assert result.use.wall_seconds > LIMITS.wall_seconds, "the machine was not short of processors"
    assert (result.verdict, outcome.verdict) == (verdict, verdict), (result, outcome)


@KEPT
def test_what_a_script_had_no_processor_for_is_not_its_own_time_where_it_ends_before_its_wall_limit(server):
    limits = sandbox_pb2.Limits(cpu_seconds=1, wall_seconds=60, memory_bytes=64 << 20)
    with _short_of_processors():
        outcome = server.run_workflow("import time\nwhile time.process_time() < 0.3: pass", limits=limits).outcome
    assert outcome.verdict == Verdict.VERDICT_OK, outcome
    assert outcome.use.wall_seconds > 1, "the machine was not short of processors"
    assert outcome.use.waiting_seconds > outcome.use.wall_seconds / 4, outcome
