"""A sandbox service of the test's own, and programs let loose on it through gRPC."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue

import grpc
from troupe.v1 import common_pb2, sandbox_pb2, sandbox_pb2_grpc

from . import processes
from .attack import MEBIBYTE, Attack, Form, Limits, Observed, Verdict
from .outside import Outside

DEADLINE = 60.0
# A service has as many descriptors as a container gives by default, not as many as this machine does; and it may dump
# core where the machine lets it, so that the sandbox has something to stop.
START = 'ulimit -n 1024; ulimit -Sc "$(ulimit -Hc)"; exec "$@"'
# Threads come and go, and an allocator keeps what it once had; what grows with each attack would soon be beyond this.
MEMORY_TOLERANCE = 64 * MEBIBYTE
GENEROUS = sandbox_pb2.Limits(cpu_seconds=30, wall_seconds=50)

PRELUDE = """
import ctypes, os
outside = {outside}
marker = {marker!r}
told = {told!r}
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), "system call %d" % number)
    return result
def succeeded():
    print("SUCCEEDED", flush=True)
"""

TOOL = "from workflow.tools import run_python\nrun_python({code!r}, None)\n"


@dataclass(frozen=True, slots=True)
class Baseline:
    """What an idle service holds."""

    memory_bytes: int
    descriptors: int
    processes: int
    files: frozenset[str]


@dataclass
class Service:
    """A running service."""

    process: subprocess.Popen[bytes]
    target: str
    work_directory: Path
    profile: str
    channel: grpc.Channel = field(init=False)
    stub: sandbox_pb2_grpc.SandboxStub = field(init=False)
    baseline: Baseline = field(init=False)

    def __post_init__(self) -> None:
        size = ("grpc.max_receive_message_length", 64 * MEBIBYTE), ("grpc.max_send_message_length", 64 * MEBIBYTE)
        self.channel = grpc.insecure_channel(self.target, options=size)
        self.stub = sandbox_pb2_grpc.SandboxStub(self.channel)

    def settle(self) -> None:
        """Takes the baseline once everything that is made on first use is there."""
        for _ in range(4):
            self.does_its_work()
        self.baseline = self.holds()

    def holds(self) -> Baseline:
        pid = self.process.pid
        # Unlike rglob, it bears a folder that goes meanwhile.
        found = [
            Path(folder, name) for folder, folders, names in os.walk(self.work_directory) for name in folders + names
        ]
        files = frozenset(str(path.relative_to(self.work_directory)) for path in found)
        return Baseline(
            processes.resident_bytes(pid), processes.descriptors(pid), len(processes.descendants(pid)), files
        )

    def strays(self) -> list[int]:
        """Processes of programs that are no descendants of the service any more."""
        known = {self.process.pid, *processes.descendants(self.process.pid)}
        found = processes.with_in_environment(str(self.work_directory))
        return [pid for pid in found if pid not in known and processes.is_alive(pid)]

    def assert_unharmed(self, outside: Outside) -> None:
        """No process, no file, no descriptor and no memory is left of a program, and the next one is served right."""
        deadline = time.monotonic() + 10
        while True:
            now, strays = self.holds(), self.strays()
            like_before = (
                now.processes <= self.baseline.processes
                and now.descriptors <= self.baseline.descriptors
                and now.files == self.baseline.files
                and not strays
            )
            if like_before:
                break
            assert time.monotonic() < deadline, f"left: {now}, strays {strays}; before: {self.baseline}"
            time.sleep(0.02)
        assert outside.left_behind() == []
        assert now.memory_bytes <= self.baseline.memory_bytes + MEMORY_TOLERANCE
        self.does_its_work()

    def does_its_work(self) -> None:
        """A right and a wrong solution, a script and a tool have the results that they should have."""
        cases = [sandbox_pb2.StdinCase(stdin="20 22", expected_stdout=text) for text in ("42", "43")]
        tests = sandbox_pb2.StdinTests(cases=cases, checker=sandbox_pb2.CHECKER_TOKENS)
        request = sandbox_pb2.RunTestsRequest(solution="print(sum(map(int, input().split())))", stdin_tests=tests)
        verdicts = {
            response.case_result.index: response.case_result.verdict
            for response in self.stub.RunTests(request, timeout=DEADLINE)
            if response.HasField("case_result")
        }
        assert verdicts == {0: sandbox_pb2.VERDICT_OK, 1: sandbox_pb2.VERDICT_WRONG_ANSWER}
        outcome, tools = self._workflow(TOOL.format(code="6 * 7") + "print('done')", GENEROUS, GENEROUS)
        assert (outcome.verdict, outcome.stdout) == (sandbox_pb2.VERDICT_OK, "done\n")
        assert [tool.output for tool in tools] == ["42\n"]

    def run(self, attack: Attack, form: Form, outside: Outside, *, planted: bool = False) -> Observed:
        """Lets the program loose, after its `first` and beside its victim if it has them."""
        number = str(secrets.randbelow(10**40)).zfill(40)
        found = attack.plant.format(number)
        with self._victim(attack.victim) as victim:
            around = {**asdict(outside), **victim, "service": self.process.pid}
            told = ""
            if attack.first:
                before = PRELUDE.format(outside=around, marker=found, told="") + attack.first
                told = self._run(before, Form.STDIN if form is Form.ASSERTION else form, attack, stdin=found).output
            program = attack.program
            if attack.prelude:
                program = PRELUDE.format(outside=around, marker=found if planted else "", told=told) + program
            # Where the attacker looks for what is to be printed, that is what must be printed.
            expected = found if attack.plant.startswith("expected") else "SUCCEEDED"
            return self._run(program, form, attack, stdin=found if planted else "", expected=expected)

    def _run(
        self, program: str, form: Form, attack: Attack, *, stdin: str = "", expected: str = "SUCCEEDED"
    ) -> Observed:
        limits = contract(attack.limits)
        try:
            match form:
                case Form.STDIN | Form.CASES | Form.ASSERTION:
                    return self._test(program, form, attack, limits, stdin, expected)
                case Form.TOOL:
                    outcome, tools = self._workflow(TOOL.format(code=program), GENEROUS, limits)
                    assert len(tools) == 1, outcome
                    return observed(tools[0].verdict, tools[0].output, "", tools[0].use)
                case Form.WORKFLOW:
                    outcome, _ = self._workflow(
                        program, limits, limits, answered=attack.answered, max_agent_calls=attack.max_agent_calls
                    )
                    seen = observed(outcome.verdict, outcome.stdout, outcome.error, outcome.use)
                    return replace(seen, agent_calls=outcome.agent_calls)
        except grpc.RpcError as error:
            return Observed(Verdict.FAULT, "", f"{error.code().name}: {error.details()}")

    def passes_in_a_batch(self, attack: Attack, outside: Outside) -> list[bool]:
        """Whether each of two cases passes, the program running in one process."""
        program = PRELUDE.format(outside=asdict(outside), marker="", told="") + attack.program
        cases = [sandbox_pb2.StdinCase(expected_stdout="SUCCEEDED")] * 2
        tests = sandbox_pb2.StdinTests(cases=cases, checker=sandbox_pb2.CHECKER_TOKENS)
        request = sandbox_pb2.RunTestsRequest(solution=program, stdin_tests=tests, mode=sandbox_pb2.TEST_MODE_BATCH)
        responses = self.stub.RunTests(request, timeout=DEADLINE)
        results = [response.case_result for response in responses if response.HasField("case_result")]
        ordered = sorted(results, key=lambda result: result.index)
        return [result.verdict == sandbox_pb2.VERDICT_OK for result in ordered]

    def _test(
        self, program: str, form: Form, attack: Attack, limits: sandbox_pb2.Limits, stdin: str, expected: str
    ) -> Observed:
        request = sandbox_pb2.RunTestsRequest(solution=program, limits=limits)
        if form is Form.ASSERTION:
            request.assertion_tests.CopyFrom(sandbox_pb2.AssertionTests(cases=[attack.case]))
        else:
            cases = [sandbox_pb2.StdinCase(stdin=stdin, expected_stdout=expected)] * (2 if form is Form.CASES else 1)
            request.stdin_tests.CopyFrom(sandbox_pb2.StdinTests(cases=cases, checker=sandbox_pb2.CHECKER_TOKENS))
        responses = self.stub.RunTests(request, timeout=DEADLINE)
        results = [response.case_result for response in responses if response.HasField("case_result")]
        assert len({result.verdict for result in results}) == 1, results
        result = results[0]
        output = expected if form is not Form.ASSERTION and result.verdict == sandbox_pb2.VERDICT_OK else ""
        return observed(result.verdict, output, result.detail, result.use)

    def _workflow(
        self,
        script: str,
        limits: sandbox_pb2.Limits,
        tool_limits: sandbox_pb2.Limits,
        *,
        answered: bool = True,
        max_agent_calls: int = 0,
    ) -> tuple[sandbox_pb2.WorkflowOutcome, list[sandbox_pb2.ToolRun]]:
        start = sandbox_pb2.StartWorkflow(
            script=script, question="?", limits=limits, tool_limits=tool_limits, task_type=common_pb2.TASK_TYPE_MATH,
            max_agent_calls=max_agent_calls,
        )  # fmt: skip
        requests: SimpleQueue[sandbox_pb2.RunWorkflowRequest | None] = SimpleQueue()
        requests.put(sandbox_pb2.RunWorkflowRequest(start=start))
        outcome, tools = sandbox_pb2.WorkflowOutcome(), []
        try:
            for response in self.stub.RunWorkflow(iter(requests.get, None), timeout=DEADLINE):
                match response.WhichOneof("message"):
                    case "agent_call" if answered:
                        reply = sandbox_pb2.AgentReply(call_id=response.agent_call.call_id, text="42")
                        requests.put(sandbox_pb2.RunWorkflowRequest(agent_reply=reply))
                    case "tool_run":
                        tools.append(response.tool_run)
                    case "outcome":
                        outcome = response.outcome
        finally:
            requests.put(None)
        return outcome, tools

    @contextmanager
    def _victim(self, wanted: bool) -> Iterator[Mapping[str, int]]:
        """Another program of the same service, asleep; its number and an address in it."""
        if not wanted:
            yield {}
            return
        before = set(processes.descendants(self.process.pid))
        case = sandbox_pb2.StdinCase(stdin="", expected_stdout="")
        request = sandbox_pb2.RunTestsRequest(
            solution="import time\ntime.sleep(30)",
            limits=sandbox_pb2.Limits(wall_seconds=40),
            stdin_tests=sandbox_pb2.StdinTests(cases=[case], checker=sandbox_pb2.CHECKER_TOKENS),
        )
        stream = self.stub.RunTests(request, timeout=DEADLINE)
        try:
            yield self._asleep(before)
        finally:
            stream.cancel()

    def _asleep(self, before: set[int]) -> Mapping[str, int]:
        """A program that was not there before. It sleeps, in its jail, once its seccomp filter is in force."""
        deadline = time.monotonic() + 10
        while True:
            # One that is found may be of an attack that runs beside, and end at once.
            with suppress(OSError):
                found = [pid for pid in processes.descendants(self.process.pid) if is_jailed(pid, before)]
                if found:
                    return {"victim": found[-1], "victim_address": processes.heap(found[-1])}
            assert time.monotonic() < deadline, "the victim did not start"
            time.sleep(0.01)

    def stop(self) -> int:
        self.channel.close()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=40)


def is_jailed(pid: int, before: set[int]) -> bool:
    if pid in before:
        return False
    try:
        return "\nSeccomp:\t2\n" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def contract(limits: Limits) -> sandbox_pb2.Limits:
    return sandbox_pb2.Limits(**asdict(limits))


def observed(
    verdict: sandbox_pb2.Verdict.ValueType, output: str, detail: str, use: sandbox_pb2.ResourceUse
) -> Observed:
    name = sandbox_pb2.Verdict.Name(verdict).removeprefix("VERDICT_").lower()
    return Observed(Verdict(name), output, detail, use.cpu_seconds, use.wall_seconds)


@contextmanager
def serving(
    folder: Path, profile: str, environment: Mapping[str, str] | None = None, *, options: Sequence[str] = ()
) -> Iterator[Service]:
    """Starts a service and waits until it serves; it must end well."""
    ready_file, work_directory = folder / "ready.json", folder / "work"
    work_directory.mkdir(parents=True)
    command = [sys.executable, "-m", "troupe_sandbox", "--listen", "127.0.0.1:0", "--profile", profile]
    command += ["--ready-file", str(ready_file), "--work-dir", str(work_directory), "--die-with-parent"]
    command += ["--workflow-slots", "6", "--test-slots", "6", "--log", "error", *options]
    around = {**os.environ, "SECRET_OF_THE_SERVICE": "do not leak", **(environment or {})}
    process = subprocess.Popen(["/bin/sh", "-c", START, "sh", *command], env=around)
    try:
        deadline = time.monotonic() + DEADLINE
        while not ready_file.exists():
            assert process.poll() is None, f"the service ended with {process.returncode}"
            assert time.monotonic() < deadline, "the service does not serve"
            time.sleep(0.02)
        service = Service(process, json.loads(ready_file.read_text())["target"], work_directory, profile)
        yield service
        assert service.stop() == 0
    finally:
        process.kill()
        process.wait()
        # A weakened service may leave a tree that is too deep for the standard library, and for pytest's own cleaning.
        subprocess.run(["rm", "-rf", str(work_directory)], check=True)
