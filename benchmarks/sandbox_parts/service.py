"""The service through gRPC, against the same in process."""

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
from troupe.v1 import sandbox_pb2, sandbox_pb2_grpc
from troupe_sandbox import Sandbox

from sandbox_parts.measuring import CASES_PER_SOLUTION, Goal, Sizes, progress, timed
from sandbox_parts.rivals import MIXES, RIVALS, Mix, run


@contextlib.contextmanager
def service(profile: str) -> Iterator[str]:
    """The service as it is started anywhere, on this core; its address."""
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready.json"
        command = [sys.executable, "-m", "troupe_sandbox", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]
        command += ["--ready-file", str(ready), "--work-dir", folder, "--profile", profile, "--test-slots", "1"]
        process = subprocess.Popen([*command, "--die-with-parent", "--log", "warn"])
        try:
            while not ready.exists():
                assert process.poll() is None
                time.sleep(0.05)
            yield json.loads(ready.read_text())["target"]
        finally:
            process.terminate()
            process.wait()


def request(mix: Mix, expected: str, cases: int) -> sandbox_pb2.RunTestsRequest:
    """One solution as a caller sends it."""
    case = sandbox_pb2.StdinCase(stdin=mix.given, expected_stdout=expected)
    tests = sandbox_pb2.StdinTests(cases=[case] * cases, checker=sandbox_pb2.CHECKER_EXACT)
    return sandbox_pb2.RunTestsRequest(solution=mix.program, stdin_tests=tests)


def through_the_service(profiles: list[str], sizes: Sizes) -> list[Goal]:
    """Solutions of 50 cases, in process and through gRPC."""
    mix = next(mix for mix in MIXES if mix.name == "typical")
    expected = run(RIVALS["subprocess.run"][1](mix), mix)
    goals = []
    for profile in profiles:
        sandbox = Sandbox(profile=profile, test_slots=1)
        ratios = []
        with service(profile) as target, grpc.insecure_channel(target) as channel:
            stub = sandbox_pb2_grpc.SandboxStub(channel)
            asked = request(mix, expected, CASES_PER_SOLUTION)

            def through(stub: sandbox_pb2_grpc.SandboxStub = stub, asked: sandbox_pb2.RunTestsRequest = asked) -> None:
                assert list(stub.RunTests(asked))[-1].outcome.passed

            def in_process(sandbox: Sandbox = sandbox) -> None:
                assert sandbox.run_tests(mix.program, [(mix.given, expected)] * 50, checker="exact").passed

            for number in range(4 * sizes.rounds + 1):
                progress(f"service: {profile}, round {number} of {4 * sizes.rounds}")
                seconds = [timed(action) for action in (in_process, through)]
                if number:
                    ratios.append(seconds[0] / seconds[1])
        goals.append(Goal(f"through gRPC against in process, {profile}", statistics.median(ratios), 0.9, True, "×"))
    return goals
