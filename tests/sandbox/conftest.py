"""A real sandbox server per profile, started as the service is started, and a small client for it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

import grpc
import pytest
from troupe.v1 import common_pb2, sandbox_pb2, sandbox_pb2_grpc

sys.path.insert(0, str(Path(__file__).parent / "harness"))

DEADLINE = 60.0
Answer = Callable[[sandbox_pb2.AgentCall], str]


@dataclass
class Execution:
    """Everything that one RunWorkflow stream brought."""

    started: sandbox_pb2.WorkflowStarted | None = None
    agent_calls: list[sandbox_pb2.AgentCall] = field(default_factory=list)
    tool_runs: list[sandbox_pb2.ToolRun] = field(default_factory=list)
    node_events: list[sandbox_pb2.NodeEvent] = field(default_factory=list)
    outcome: sandbox_pb2.WorkflowOutcome = field(default_factory=sandbox_pb2.WorkflowOutcome)


@dataclass
class Server:
    """A running service."""

    process: subprocess.Popen[bytes]
    target: str
    metrics: str
    profile: str
    work_directory: Path

    def __post_init__(self) -> None:
        options = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]
        # A connection of its own: one shared with a server that was killed at this address would be in its back-off.
        self.channel = grpc.insecure_channel(self.target, [*options, ("grpc.use_local_subchannel_pool", 1)])
        self.stub = sandbox_pb2_grpc.SandboxStub(self.channel)

    def start_message(self, script: str, **fields: object) -> sandbox_pb2.RunWorkflowRequest:
        start = sandbox_pb2.StartWorkflow(
            **{
                "script": script,
                "question": "What is 6 * 7?",
                "task_type": common_pb2.TASK_TYPE_MATH,
                "seed": 7,
                **fields,
            }
        )
        return sandbox_pb2.RunWorkflowRequest(start=start)

    def run_workflow(self, script: str, answer: Answer = lambda call: "42", **fields: object) -> Execution:
        """Runs a script to its end; `answer` plays every agent."""
        requests: SimpleQueue[sandbox_pb2.RunWorkflowRequest | None] = SimpleQueue()
        requests.put(self.start_message(script, **fields))
        execution = Execution()
        for response in self.stub.RunWorkflow(iter(requests.get, None), timeout=DEADLINE):
            match response.WhichOneof("message"):
                case "started":
                    execution.started = response.started
                case "agent_call":
                    call = response.agent_call
                    execution.agent_calls.append(call)
                    reply = sandbox_pb2.AgentReply(call_id=call.call_id, text=answer(call))
                    requests.put(sandbox_pb2.RunWorkflowRequest(agent_reply=reply))
                case "tool_run":
                    execution.tool_runs.append(response.tool_run)
                case "node_event":
                    execution.node_events.append(response.node_event)
                case "outcome":
                    execution.outcome = response.outcome
        requests.put(None)
        return execution

    def run_tests(
        self, request: sandbox_pb2.RunTestsRequest
    ) -> tuple[dict[int, sandbox_pb2.CaseResult], sandbox_pb2.TestsOutcome]:
        results: dict[int, sandbox_pb2.CaseResult] = {}
        outcome = sandbox_pb2.TestsOutcome()
        for response in self.stub.RunTests(request, timeout=DEADLINE):
            if response.HasField("case_result"):
                results[response.case_result.index] = response.case_result
            else:
                outcome = response.outcome
        return results, outcome

    def stop(self) -> int:
        self.channel.close()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)

    def children(self) -> set[int]:
        """Processes that the service has started and that are alive: its zygotes, and programs if any run."""
        return {child for child in descendants(self.process.pid) if self.is_alive(child)}

    @staticmethod
    def is_alive(pid: int) -> bool:
        return state(pid) not in ("Z", None)


def state(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in map(int, children.read_text().split()):
                found += [child, *descendants(child)]
    except (FileNotFoundError, ProcessLookupError):
        return found
    return found


def start_server(
    tmp_path: Path,
    *options: str,
    profile: str = "auto",
    check: bool = True,
    group: Path | None = None,
    open_files: int | None = None,
) -> Server:
    """Starts the service, in a control group or with a hard limit if one is named, and waits until it serves."""
    ready_file = tmp_path / "ready.json"
    work_directory = tmp_path / "work"
    work_directory.mkdir()
    environment = {**os.environ, "SECRET_OF_THE_SERVICE": "do not leak"}
    command = [sys.executable, "-m", "troupe_sandbox", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]
    command += ["--ready-file", str(ready_file), "--work-dir", str(work_directory), "--profile", profile]
    command += ["--die-with-parent", "--log", "warn", *options]
    if group is not None:
        command = ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$0" "$@"', *command]
    if open_files is not None:
        command = ["sh", "-c", f'ulimit -n {open_files} && exec "$0" "$@"', *command]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE if not check else None)
    deadline = time.monotonic() + DEADLINE
    while not ready_file.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise RuntimeError(f"the sandbox did not start: {process.communicate()[1]!r}")
        time.sleep(0.02)
    ready = json.loads(ready_file.read_text())
    assert ready["pid"] == process.pid
    return Server(process, ready["target"], ready["metrics"], profile, work_directory)


@pytest.fixture(scope="session", params=["full", "pod"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service under each profile, shared by all tests."""
    folder = tmp_path_factory.mktemp(f"sandbox-{request.param}")
    running = start_server(folder, "--workflow-slots", "8", "--test-slots", "2", profile=request.param)
    yield running
    assert running.stop() == 0


@pytest.fixture
def undisturbed(server: Server) -> Iterator[Server]:
    """The shared service; afterwards no process and no file of a program may be left."""

    def files() -> set[str]:
        # Unlike rglob, it bears a folder that goes meanwhile.
        return {name for _, folders, names in os.walk(server.work_directory) for name in folders + names}

    processes_before, files_before = server.children(), files()
    yield server
    # A zygote may have been replaced, so processes are counted.
    deadline = time.monotonic() + 10
    while len(server.children()) > len(processes_before) or files() != files_before:
        assert time.monotonic() < deadline, "a process or a file survived its execution"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def launch() -> Callable[..., Server]:
    """Starts a service of the test's own."""
    return start_server
