"""How soon the sandbox gives a right answer again after a SIGKILL of what it is made of, under load.

    python benchmarks/sandbox_recovery.py [--rounds 5] [--profiles full,pod]

A service with 200 jobs in flight: 100 solutions of three cases, 50 scripts that wait for an agent's turn, and 50 scripts
that run Python as a tool, twice. Killed are: the zygotes in turn; the process of a solution, a case or a tool run; a script
below its keeper; and the service itself with the supervisor in it, which is then started again as a supervisor of services
does, at once and at the same address. Before a kill all 50 agent calls are open, and have no reply until after it; cases and
tool runs come and go. A caller of its own asks for short jobs of two kinds, solutions and scripts with an agent call;
counted are the seconds from the kill to the first right answer to one that was asked for after it, and how the jobs in
flight ended. None may be lost or have another's result: each has its own right one, or ends with a code that an orchestrator
tries again.
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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import grpc
from troupe.v1 import common_pb2, sandbox_pb2, sandbox_pb2_grpc
from troupe_contracts.errors import INFRASTRUCTURE_CODES

SOLUTIONS, WAITING_SCRIPTS, TOOL_SCRIPTS = 100, 50, 50
JOBS = SOLUTIONS + WAITING_SCRIPTS + TOOL_SCRIPTS
# Enough that scripts of which each waits for an agent leave some to those that run tools.
WORKFLOW_SLOTS = WAITING_SCRIPTS + 14
# So many cases and tool runs have ended before a kill.
BEGUN = 3
TOOL_RUNS = 2
IN_FLIGHT = "import time; time.sleep(0.05); print(input())"
SHORT = "print(int(input()) + 1)"
ASKING = """
from workflow import AgentNode, Workflow
flow = Workflow("one")
flow.add_node(AgentNode("solver", "Solve."))
flow.run(question)
"""
USING_TOOLS = f"""
from workflow.tools import run_python
for _ in range({TOOL_RUNS}):
    run_python(f"import time; time.sleep(0.05); print({{question!r}})", None)
"""
VICTIMS = ("zygote", "program", "script", "service")
GOAL_SECONDS = 1.0
DEADLINE = 600.0
ALLOWED = {"right", *(code.name for code in INFRASTRUCTURE_CODES)}
SHORT_JOBS = (("troupe-run-id", "short-jobs"),)
"""Another run than that of the jobs in flight: callers take turns."""


def request(solution: str, *cases: tuple[str, str]) -> sandbox_pb2.RunTestsRequest:
    """A job of stdin cases."""
    listed = [sandbox_pb2.StdinCase(stdin=given, expected_stdout=expected) for given, expected in cases]
    tests = sandbox_pb2.StdinTests(cases=listed, checker=sandbox_pb2.CHECKER_TOKENS)
    return sandbox_pb2.RunTestsRequest(solution=solution, stdin_tests=tests)


def children(pid: int) -> list[int]:
    """Of all threads of a process; none of one that is gone."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += map(int, path.read_text().split())
    return found


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
        command += ["--workflow-slots", str(WORKFLOW_SLOTS)]
        return subprocess.Popen([*command, "--die-with-parent", "--log", "error"])

    def wait(self) -> None:
        """Until it serves."""
        while not self.ready.exists():
            assert self.process.poll() is None, "the service did not start"
            time.sleep(0.005)
        self.target = json.loads(self.ready.read_text())["target"]

    def children(self) -> list[int]:
        """Of all its threads."""
        return children(self.process.pid)

    def victims(self, kind: str, zygotes: list[int]) -> list[int]:
        """Scripts, or programs that have no keeper."""
        below = {pid: children(pid) for pid in self.children() if pid not in zygotes}
        if kind == "script":
            return [script for scripts in below.values() for script in scripts]
        return [pid for pid, scripts in below.items() if not scripts]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


Metadata = tuple[tuple[str, str | bytes], ...]


def solution_ends(
    stub: sandbox_pb2_grpc.SandboxStub, job: sandbox_pb2.RunTestsRequest, begun: threading.Semaphore, metadata: Metadata
) -> str:
    """How a job of tests ends: "right", or with what instead."""
    end = "lost"
    for response in stub.RunTests(job, timeout=DEADLINE, metadata=metadata):
        begun.release()
        if response.HasField("case_result") and response.case_result.verdict != sandbox_pb2.VERDICT_OK:
            failed = response.case_result
            end = f"{sandbox_pb2.Verdict.Name(failed.verdict)} {failed.detail}"
        elif response.HasField("outcome") and response.outcome.passed:
            end = "right"
    return end


@dataclass(frozen=True)
class Script:
    """A script with a question of its own, of which agent and tool say something."""

    text: str
    question: str
    agent_calls: int = 0
    tool_runs: int = 0

    def ends(
        self,
        stub: sandbox_pb2_grpc.SandboxStub,
        agents: Callable[[], None],
        tools: Callable[[], None],
        metadata: Metadata,
    ) -> str:
        """How it ends: "right", or with what instead. `agents` may wait before a reply."""
        requests: SimpleQueue[sandbox_pb2.RunWorkflowRequest | None] = SimpleQueue()
        start = sandbox_pb2.StartWorkflow(script=self.text, question=self.question, task_type=common_pb2.TASK_TYPE_MATH)
        requests.put(sandbox_pb2.RunWorkflowRequest(start=start))
        asked, ran = [], []
        try:
            for response in stub.RunWorkflow(iter(requests.get, None), timeout=DEADLINE, metadata=metadata):
                if response.HasField("agent_call"):
                    asked.append(response.agent_call.messages[-1].content)
                    agents()
                    reply = sandbox_pb2.AgentReply(
                        call_id=response.agent_call.call_id, text=f"\\boxed{{{self.question}}}"
                    )
                    requests.put(sandbox_pb2.RunWorkflowRequest(agent_reply=reply))
                elif response.HasField("tool_run"):
                    ran.append(response.tool_run.output)
                    tools()
                elif response.HasField("outcome"):
                    return self.judged(response.outcome, asked, ran)
        finally:
            requests.put(None)
        return "lost"

    def judged(self, outcome: sandbox_pb2.WorkflowOutcome, asked: list[str], ran: list[str]) -> str:
        if outcome.verdict != sandbox_pb2.VERDICT_OK:
            return f"{sandbox_pb2.Verdict.Name(outcome.verdict)} {outcome.error}"
        is_right = (
            len(asked) == self.agent_calls
            and all(self.question in text for text in asked)
            and (self.question in outcome.result) == (self.agent_calls > 0)
            and ran == [f"{self.question}\n"] * self.tool_runs
        )
        return "right" if is_right else f"wrong: asked {asked}, ran {ran}, {outcome.result}"


def code_of(end: Callable[[], str]) -> str:
    """The end of a job, or the code with which it fails."""
    try:
        return end()
    except grpc.RpcError as error:
        return str(error.code().name)


def nothing() -> None:
    """An agent that replies at once, a tool run that nobody counts."""


def short_solution(stub: sandbox_pb2_grpc.SandboxStub) -> str:
    """How a short job of another caller ends."""
    return solution_ends(stub, request(SHORT, ("1", "2")), threading.Semaphore(0), SHORT_JOBS)


def short_script(stub: sandbox_pb2_grpc.SandboxStub) -> str:
    """How a script of another caller ends."""
    return Script(ASKING, "the short one", agent_calls=1).ends(stub, nothing, nothing, SHORT_JOBS)


SHORT_KINDS = {"solution": short_solution, "script": short_script}


def seconds_until_right(target: str, since: float, kind: Callable[[sandbox_pb2_grpc.SandboxStub], str]) -> float:
    """Asks for one after the other, each on a connection of its own, until one has its right answer."""
    # A connection that is refused is tried again at once, as a client that was told of a restart does.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 50)]
    while True:
        with grpc.insecure_channel(target, options=options) as channel:
            stub = sandbox_pb2_grpc.SandboxStub(channel)
            end = code_of(partial(kind, stub))
        if end == "right":
            return time.perf_counter() - since
        assert end in ALLOWED, end
        time.sleep(0.01)


class Load:
    """Jobs in flight on one connection; how they ended is known when all have."""

    def __init__(self, target: str) -> None:
        self.ends: Counter[str] = Counter()
        self.lock, self.killed = threading.Lock(), threading.Event()
        self.asked, self.cases, self.tools = (threading.Semaphore(0) for _ in range(3))
        self.channel = grpc.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)])
        stub = sandbox_pb2_grpc.SandboxStub(self.channel)
        waiting = [
            self.start("agent", self.script(stub, ASKING, f"question {number:02}", agent_calls=1))
            for number in range(WAITING_SCRIPTS)
        ]
        for _ in waiting:
            assert self.asked.acquire(timeout=DEADLINE), "an agent call did not come"
        others = [self.start("solution", self.solution(stub, number)) for number in range(SOLUTIONS)]
        others += [
            self.start("tool", self.script(stub, USING_TOOLS, f"tool {number:02}", tool_runs=TOOL_RUNS))
            for number in range(TOOL_SCRIPTS)
        ]
        self.threads = waiting + others
        for semaphore in [self.cases, self.tools] * BEGUN:
            assert semaphore.acquire(timeout=DEADLINE), "no case or no tool run ended"

    def solution(self, stub: sandbox_pb2_grpc.SandboxStub, number: int) -> Callable[[], str]:
        job = request(IN_FLIGHT, *[(f"{number}-{case}", f"{number}-{case}") for case in range(3)])
        return partial(solution_ends, stub, job, self.cases, ())

    def script(self, stub: sandbox_pb2_grpc.SandboxStub, text: str, question: str, **calls: int) -> Callable[[], str]:
        return partial(Script(text, question, **calls).ends, stub, self.wait_for_the_kill, self.tools.release, ())

    def wait_for_the_kill(self) -> None:
        self.asked.release()
        self.killed.wait()

    def start(self, kind: str, end: Callable[[], str]) -> threading.Thread:
        def run() -> None:
            how = "lost"
            try:
                how = code_of(end)
            finally:
                with self.lock:
                    self.ends[f"{kind} {how}"] += 1

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def join(self) -> Counter[str]:
        """Waits for the end of all."""
        for thread in self.threads:
            thread.join()
        self.channel.close()
        return self.ends


def kill(service: Service, victim: str, zygotes: list[int], number: int) -> None:
    """One of its kind; of zygotes each in its turn. A service is started again."""
    if victim == "service":
        service.process.kill()
        service.process.wait()
        service.process = service.start()
        return
    while True:
        found = zygotes if victim == "zygote" else service.victims(victim, zygotes)
        # Programs come and go.
        with contextlib.suppress(ProcessLookupError):
            if found:
                os.kill(found[number % len(found)] if victim == "zygote" else random.choice(found), signal.SIGKILL)
                return


def recovery(service: Service, victim: str, number: int) -> tuple[dict[str, float], Counter[str]]:
    """Seconds to a right answer of each kind after a kill, and how the jobs in flight ended."""
    zygotes = sorted(service.children())
    load = Load(service.target)
    killed_at = time.perf_counter()
    kill(service, victim, zygotes, number)
    if victim != "service":
        killed_at = time.perf_counter()
    load.killed.set()
    with ThreadPoolExecutor(len(SHORT_KINDS)) as callers:
        asked = [callers.submit(seconds_until_right, service.target, killed_at, kind) for kind in SHORT_KINDS.values()]
        seconds = dict(zip(SHORT_KINDS, [each.result() for each in asked], strict=True))
    service.wait()
    return seconds, load.join()


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profiles", default="full,pod")
    arguments = parser.parse_args()
    print(
        f"in flight: {SOLUTIONS} solutions, {WAITING_SCRIPTS} scripts with an agent call open, "
        f"{TOOL_SCRIPTS} scripts with tool runs"
    )
    for profile in arguments.profiles.split(","):
        with tempfile.TemporaryDirectory() as folder:
            service = Service(profile, Path(folder))
            for short in SHORT_KINDS.values():
                seconds_until_right(service.target, time.perf_counter(), short)
            for victim in VICTIMS:
                times: list[dict[str, float]] = []
                all_ends: Counter[str] = Counter()
                for number in range(arguments.rounds):
                    seconds, ends = recovery(service, victim, number)
                    assert ends.total() == JOBS, ends
                    assert all(end.partition(" ")[2] in ALLOWED for end in ends), ends
                    times.append(seconds)
                    all_ends += ends
                for kind in SHORT_KINDS:
                    of_kind = [seconds[kind] for seconds in times]
                    longest = max(of_kind)
                    met = "met" if longest <= GOAL_SECONDS else "NOT met"
                    print(
                        f"{profile}, {victim} killed, until a {kind} is right: median {statistics.median(of_kind):.2f} s, "
                        f"longest {longest:.2f} s; goal ≤ {GOAL_SECONDS:.0f} s: {met}"
                    )
                how = ", ".join(f"{count} {end}" for end, count in sorted(all_ends.items()))
                print(f"    of {JOBS * arguments.rounds} jobs in flight: {how}", flush=True)
            service.stop()


if __name__ == "__main__":
    main()
