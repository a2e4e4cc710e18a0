"""Runs a small script in the zygote of scripts, before there is any: what the interpreter adapts and caches for it is shared
with all that are forked. A script that waits for its agent so holds a sixth less memory of its own. Loaded by `inside.py`.
"""

import socket
import threading
import time
from contextvars import copy_context
from importlib import import_module
from pathlib import Path
from typing import Any

SCRIPT = """
from workflow import AgentNode, Workflow
flow = Workflow("rehearsal")
flow.add_node(AgentNode("agent", "You rehearse."))
for _ in range(10):
    flow.run(question)
"""
RUNS = 3
SECONDS_TO_END = 10.0


def rehearse() -> None:
    """Leaves no thread and takes no number of a script's. Raises RuntimeError if the script fails."""
    runtime: Any = import_module("workflow.runtime")
    concurrency: Any = import_module("workflow.concurrency")
    before = threads()

    def run() -> None:
        # Conversations are numbered here and not in the lane of scripts.
        concurrency._lane.set(concurrency.Lane())
        ours, supervisors = socket.socketpair()
        player = threading.Thread(target=play, args=(supervisors,), name="rehearsal")
        player.start()
        status = runtime.main(ours.fileno())
        supervisors.shutdown(socket.SHUT_RDWR)
        player.join()
        # The one that reads replies, too: it must not read from a descriptor that has been closed and given anew.
        wait_until_there_are(before)
        ours.close()
        supervisors.close()
        if status != runtime.EXIT_OK:
            raise RuntimeError(f"the rehearsal of a script ended with status {status}")

    for _ in range(RUNS):
        copy_context().run(run)


def play(pipe: socket.socket) -> None:
    """The supervisor's part: the task, then a reply to each call, until the pipe is closed."""
    frames: Any = import_module("workflow.frames")
    start = {
        "type": "start",
        "script": SCRIPT,
        "question": "?",
        "task_type": "math",
        "delivery_instruction": "",
        "seed": 0,
    }
    pipe.sendall(frames.encode(start))
    with pipe.makefile("rb") as sent:
        while header := sent.read(frames.HEADER_BYTES):
            frame = frames.decode(sent.read(frames.body_length(header)))
            if frame["type"] == "agent_call":
                reply = {"type": "agent_reply", "call_id": frame["call_id"], "text": r"\boxed{1}"}
                pipe.sendall(frames.encode(reply))


def threads() -> int:
    """Those that the kernel knows. It forgets one a moment after Python does."""
    return len(list(Path("/proc/self/task").iterdir()))


def wait_until_there_are(wanted: int) -> None:
    """No longer than what a zygote's start may take: it is refused, by its number of threads, if they do not end."""
    deadline = time.monotonic() + SECONDS_TO_END
    while threads() > wanted and time.monotonic() < deadline:
        time.sleep(0.001)
