"""Runs scripts in a real process of the library's runtime, with this process as the supervisor.

The frames are packed and parsed here by hand, as `docs/script-pipe.md` says, not with the library's own code.
"""

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from troupe_workflow import LIBRARY

Frame = dict[str, Any]
LAUNCH = """
import sys
sys.path.insert(0, sys.argv[1])
from workflow.runtime import main
sys.exit(main(int(sys.argv[2])))
"""


@dataclass(frozen=True)
class Refusal:
    """In place of an agent's reply."""

    reason: str


@dataclass
class Execution:
    """What came over the pipe, and how the process ended."""

    frames: list[Frame] = field(default_factory=list)
    exit_code: int = 0
    stdout: str = ""
    stderr: str = ""

    def of_type(self, kind: str) -> list[Frame]:
        return [frame for frame in self.frames if frame["type"] == kind]

    @property
    def calls(self) -> list[Frame]:
        return self.of_type("agent_call")

    @property
    def results(self) -> list[str]:
        return [frame["content"] for frame in self.of_type("result")]

    @property
    def result(self) -> Frame:
        return self.of_type("result")[-1]

    def entered(self) -> list[tuple[str, str]]:
        """Node and type of each visit, in the order of entering."""
        return [(f["node"], f["node_type"]) for f in self.of_type("node_event") if f["kind"] == "enter"]

    def asked(self, agent: str) -> list[str]:
        """The last message of each call of an agent."""
        return [call["messages"][-1]["content"] for call in self.calls if call["agent"] == agent]


class Peer:
    """The supervisor's end of the pipe, with the script's process."""

    def __init__(self, env: dict[str, str] | None = None) -> None:
        # Files, not pipes: nobody reads what the script prints before it ends.
        self._stdout, self._stderr = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", LAUNCH, str(LIBRARY), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._stdout,
                stderr=self._stderr,
                env=env or {},
            )
        self.socket = ours
        self.socket.settimeout(20)
        self._bytes = ours.makefile("rb")

    def send(self, **frame: Any) -> None:
        body = json.dumps(frame).encode()
        self.socket.sendall(struct.pack("<I", len(body)) + body)

    def start(self, script: str, **fields: Any) -> None:
        defaults = {"question": "What is 3 * 4?", "task_type": "math", "delivery_instruction": "", "seed": 7}
        self.send(type="start", script=script, **{**defaults, **fields})

    def receive(self) -> Frame | None:
        """The next frame, None when the script has ended."""
        header = self._bytes.read(4)
        if not header:
            return None
        body = self._bytes.read(struct.unpack("<I", header)[0])
        frame: Frame = json.loads(body.decode("utf-8"))
        return frame

    def receive_until(self, stop: Callable[[list[Frame]], bool]) -> list[Frame]:
        """Frames up to the one with which `stop` holds."""
        frames: list[Frame] = []
        while not stop(frames):
            frame = self.receive()
            assert frame is not None, (frames, self.finish().stderr)
            frames.append(frame)
        return frames

    def finish(self, execution: Execution | None = None) -> Execution:
        execution = execution or Execution()
        execution.exit_code = self.process.wait(timeout=20)
        for stream in (self._stdout, self._stderr):
            stream.seek(0)
        execution.stdout, execution.stderr = self._stdout.read().decode(), self._stderr.read().decode()
        return execution

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        self._stdout.close()
        self._stderr.close()
        self._bytes.close()
        self.socket.close()


Agent = Callable[[Frame], str | Refusal]
Tool = Callable[[str], tuple[str, str]]


def run_python(code: str) -> tuple[str, str]:
    """Output and verdict of a run, as the sandbox's python tool gives them."""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=20)
    if done.returncode == 0:
        return done.stdout, "ok"
    return done.stdout + done.stderr.splitlines()[-1], "runtime_error"


def serve(peer: Peer, agent: Agent, tool: Tool = run_python) -> Execution:
    """Answers every call as it comes, until the script ends."""
    execution = Execution()
    while (frame := peer.receive()) is not None:
        execution.frames.append(frame)
        if frame["type"] == "agent_call":
            reply = agent(frame)
            if isinstance(reply, Refusal):
                peer.send(type="agent_refusal", call_id=frame["call_id"], reason=reply.reason)
            else:
                peer.send(type="agent_reply", call_id=frame["call_id"], text=reply)
        elif frame["type"] == "tool_call":
            output, verdict = tool(frame["code"])
            run_id = 1000 + frame["call_id"]
            peer.send(
                type="tool_result",
                call_id=frame["call_id"],
                tool_run_id=run_id,
                output=output,
                verdict=verdict,
            )
    return peer.finish(execution)


class Cast:
    """Agents by name: each says its lines in order, and the last one again."""

    def __init__(self, **lines: str | Refusal | list[str | Refusal]) -> None:
        self._lines = {name: said if isinstance(said, list) else [said] for name, said in lines.items()}
        self._next: dict[str, int] = {}

    def __call__(self, call: Frame) -> str | Refusal:
        name = call["agent"]
        position = self._next.get(name, 0)
        self._next[name] = position + 1
        lines = self._lines[name]
        return lines[min(position, len(lines) - 1)]


@pytest.fixture
def new_peer() -> Iterator[Callable[..., Peer]]:
    peers: list[Peer] = []

    def start(**options: Any) -> Peer:
        peers.append(Peer(**options))
        return peers[-1]

    yield start
    for peer in peers:
        peer.close()


RunScript = Callable[..., Execution]


@pytest.fixture
def run_script(new_peer: Callable[..., Peer]) -> RunScript:
    """Runs a script: `run_script(script, Solver="…", Critic=["…", "…"])`, or with `agent=` a function."""

    def run(
        script: str,
        agent: Agent | None = None,
        tool: Tool = run_python,
        env: dict[str, str] | None = None,
        start: dict[str, Any] | None = None,
        **lines: str | Refusal | list[str | Refusal],
    ) -> Execution:
        peer = new_peer(env=env)
        peer.start(script, **(start or {}))
        return serve(peer, agent or Cast(**lines), tool)

    return run


@pytest.fixture
def refusal() -> type[Refusal]:
    return Refusal


@pytest.fixture
def python_on_path() -> dict[str, str]:
    """An environment in which a script finds `python`."""
    return {"PATH": f"{Path(sys.executable).parent}:{os.defpath}"}
