"""How soon the sandbox gives a right answer again after a SIGKILL of what it is made of, under load.

    python benchmarks/sandbox_recovery.py [--rounds 5] [--profiles full,pod]

A service with 200 jobs of three cases in flight. Killed are: a zygote, the process of a solution or of a case, and the
service itself with the supervisor in it, which is then started again as a supervisor of services does, at once and at the
same address. A caller of its own asks for one short job after the other; counted are the seconds from the kill to the first
right answer to a job that was asked for after it, and how the jobs in flight ended. None may be lost: each passes, or ends
with a code that an orchestrator tries again.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import grpc
from troupe.v1 import sandbox_pb2, sandbox_pb2_grpc
from troupe_contracts.errors import INFRASTRUCTURE_CODES

JOBS = 200
IN_FLIGHT = "import time; time.sleep(0.05); print(input())"
SHORT = "print(int(input()) + 1)"
VICTIMS = ("zygote", "program", "service")
GOAL_SECONDS = 1.0
DEADLINE = 120.0


def request(solution: str, *cases: tuple[str, str]) -> sandbox_pb2.RunTestsRequest:
    """A job of stdin cases."""
    listed = [sandbox_pb2.StdinCase(stdin=given, expected_stdout=expected) for given, expected in cases]
    tests = sandbox_pb2.StdinTests(cases=listed, checker=sandbox_pb2.CHECKER_TOKENS)
    return sandbox_pb2.RunTestsRequest(solution=solution, stdin_tests=tests)


class Service:
    """The service as it is started anywhere, at one address for as long as this lives."""

    def __init__(self, profile: str, folder: Path) -> None:
        self.profile, self.folder, self.target = profile, folder, "127.0.0.1:0"
        self.process = self.start()
        self.wait()

    def start(self) -> subprocess.Popen[bytes]:
        """Does not wait until it serves."""
        self.ready = self.folder / f"ready-{time.monotonic_ns()}.json"
        command = [sys.executable, "-m", "troupe_sandbox", "--listen", self.target, "--metrics", "127.0.0.1:0"]
        command += ["--ready-file", str(self.ready), "--work-dir", str(self.folder), "--profile", self.profile]
        return subprocess.Popen([*command, "--die-with-parent", "--log", "error"])

    def wait(self) -> None:
        """Until it serves."""
        while not self.ready.exists():
            assert self.process.poll() is None, "the service did not start"
            time.sleep(0.005)
        self.target = json.loads(self.ready.read_text())["target"]

    def children(self) -> list[int]:
        """Of all its threads."""
        lists = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(child) for path in lists for child in path.read_text().split()]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


def ended(target: str, job: sandbox_pb2.RunTestsRequest, options: list[tuple[str, int]]) -> str:
    """How one job ends, on a connection of its own."""
    with grpc.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1), *options]) as channel:
        try:
            stub = sandbox_pb2_grpc.SandboxStub(channel)
            # Another run than that of the jobs in flight: callers take turns.
            responses = list(stub.RunTests(job, timeout=DEADLINE, metadata=[("troupe-run-id", "short-jobs")]))
        except grpc.RpcError as error:
            return str(error.code().name)
        return "passed" if responses and responses[-1].outcome.passed else "wrong"


def load(target: str) -> tuple[Counter[str], list[threading.Thread], threading.Semaphore]:
    """Jobs in flight on one connection; how they ended is known when all threads have."""
    ends: Counter[str] = Counter()
    lock, begun = threading.Lock(), threading.Semaphore(0)
    channel = grpc.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)])
    stub = sandbox_pb2_grpc.SandboxStub(channel)
    job = request(IN_FLIGHT, *[(str(number), str(number)) for number in range(3)])

    def run() -> None:
        end = "lost"
        try:
            for response in stub.RunTests(job, timeout=DEADLINE):
                begun.release()
                if response.HasField("case_result") and response.case_result.verdict != sandbox_pb2.VERDICT_OK:
                    failed = response.case_result
                    end = f"{sandbox_pb2.Verdict.Name(failed.verdict)} {failed.detail}"
                elif response.HasField("outcome") and response.outcome.passed:
                    end = "passed"
        except grpc.RpcError as error:
            end = error.code().name
        with lock:
            ends[end] += 1

    threads = [threading.Thread(target=run) for _ in range(JOBS)]
    for thread in threads:
        thread.start()
    return ends, threads, begun


def recovery(service: Service, victim: str, zygotes: set[int]) -> tuple[float, Counter[str]]:
    """Seconds to a right answer after a kill, and how the jobs in flight ended."""
    ends, threads, begun = load(service.target)
    for _ in range(3):
        begun.acquire()
    short = request(SHORT, ("1", "2"))
    killed_at = time.perf_counter()
    if victim == "service":
        service.process.kill()
        service.process.wait()
        service.process = service.start()
    else:
        while True:
            running = set(service.children())
            found = sorted(running & zygotes if victim == "zygote" else running - zygotes)
            with contextlib.suppress(IndexError, ProcessLookupError):
                os.kill(random.choice(found), signal.SIGKILL)
                break
        killed_at = time.perf_counter()
    # A connection that is refused is tried again at once, as a client that was told of a restart does.
    while ended(service.target, short, [("grpc.max_reconnect_backoff_ms", 50)]) != "passed":
        time.sleep(0.01)
    seconds = time.perf_counter() - killed_at
    service.wait()
    for thread in threads:
        thread.join()
    return seconds, ends


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profiles", default="full,pod")
    arguments = parser.parse_args()
    allowed = {"passed", *(code.name for code in INFRASTRUCTURE_CODES)}
    print(f"{'killed':20}{'median s':>10}{'longest s':>10}  of {JOBS * arguments.rounds} jobs in flight")
    for profile in arguments.profiles.split(","):
        with tempfile.TemporaryDirectory() as folder:
            service = Service(profile, Path(folder))
            for victim in VICTIMS:
                times: list[float] = []
                all_ends: Counter[str] = Counter()
                for _ in range(arguments.rounds):
                    assert ended(service.target, request(SHORT, ("1", "2")), []) == "passed"
                    seconds, ends = recovery(service, victim, set(service.children()))
                    assert ends.total() == JOBS, ends
                    assert set(ends) <= allowed, ends
                    times.append(seconds)
                    all_ends += ends
                median, longest = statistics.median(times), max(times)
                met = "met" if longest <= GOAL_SECONDS else "NOT met"
                how = ", ".join(f"{count} {end}" for end, count in all_ends.most_common())
                print(f"{f'{victim}, {profile}':20}{median:10.2f}{longest:10.2f}  {how}; goal ≤ 1 s: {met}", flush=True)
            service.stop()


if __name__ == "__main__":
    main()
