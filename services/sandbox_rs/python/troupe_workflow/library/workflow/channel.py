"""The one way out of a script: calls to agents and tools over the pipe to the sandbox's supervisor.

Invariants: frames leave whole and in the order of their call ids, whatever thread sends them; every call
ends, with its reply, its refusal, or ChannelClosed; a forked child can never write to the pipe. Nothing
starts until `start`.
"""

import _thread
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import NamedTuple

from .frames import HEADER_BYTES, Frame, FrameError, body_length, decode, encode, field

MAX_CALLS_IN_FLIGHT = 64


class ChannelClosed(ConnectionError):
    """The pipe to the supervisor is gone: no agent or tool can answer any more."""


class AgentRefused(RuntimeError):
    """The supervisor gave an agent no turn: a budget is spent, or the context is full."""


class ChatMessage(NamedTuple):
    """One message for an agent; role is system, user or tool."""

    role: str
    content: str


@dataclass(frozen=True)
class ToolResult:
    """What an attested run of python gave. `verdict` is ok, runtime_error, cpu_limit, …"""

    tool_run_id: int
    output: str
    verdict: str


class Channel:
    """Calls over one descriptor, from any number of threads."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._last_call_id = 0
        self._send_lock = threading.Lock()
        self._waiting: dict[int, SimpleQueue[Frame | None]] = {}
        self._slots = threading.BoundedSemaphore(MAX_CALLS_IN_FLIGHT)
        self._closed_because: str | None = None

    def start(self) -> None:
        """Starts the thread that hands replies to their callers."""
        os.register_at_fork(after_in_child=self._leave_to_parent)
        # Not one of `threading`'s: the script does not see it there, and nothing that script and zygote share is touched.
        _thread.start_new_thread(self._read_replies, ())

    def read_frame(self) -> Frame:
        """The next frame from the supervisor. Only for the start frame; afterwards the thread reads."""
        return decode(self._read(body_length(self._read(HEADER_BYTES))))

    def call_agent(
        self, conversation_id: str, agent: str, messages: Sequence[ChatMessage], tool_run_ids: Sequence[int]
    ) -> str:
        """One turn of one agent. Raises AgentRefused, ChannelClosed."""
        reply = self._call(
            {
                "type": "agent_call",
                "conversation_id": conversation_id,
                "agent": agent,
                "messages": [message._asdict() for message in messages],
                "tool_run_ids": list(tool_run_ids),
            }
        )
        if reply["type"] == "agent_refusal":
            raise AgentRefused(f"agent {agent} got no turn: {field(reply, 'reason', str)}")
        text: str = field(reply, "text", str)
        return text

    def call_tool(self, conversation_id: str, code: str, timeout_seconds: float | None) -> ToolResult:
        """One run of python in a process of its own. Raises ChannelClosed."""
        reply = self._call(
            {
                "type": "tool_call",
                "conversation_id": conversation_id,
                "code": code,
                "timeout_seconds": timeout_seconds,
            }
        )
        return ToolResult(field(reply, "tool_run_id", int), field(reply, "output", str), field(reply, "verdict", str))

    def send(self, frame: Frame) -> None:
        """Sends a frame that has no reply. Raises ChannelClosed, FrameError."""
        content = encode(frame)
        with self._send_lock:
            self._write(content)

    def _call(self, frame: Frame) -> Frame:
        slot: SimpleQueue[Frame | None] = SimpleQueue()
        with self._slots:
            with self._send_lock:
                # Counted only once it is known that the frame can be sent.
                call_id = self._last_call_id + 1
                content = encode({**frame, "call_id": call_id})
                self._last_call_id = call_id
                self._waiting[call_id] = slot
                self._write(content)
            reply = slot.get()
        if reply is None:
            raise self._closed()
        return reply

    def _closed(self) -> ChannelClosed:
        return ChannelClosed(f"no agent or tool can be called any more: {self._closed_because}")

    def _write(self, content: bytes) -> None:
        if self._closed_because is not None:
            raise self._closed()
        view = memoryview(content)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            self._close(f"writing to the supervisor failed ({error})")
            raise self._closed() from error
        except BaseException:
            # A signal handler of the script's cut the frame in two: what follows could not be read.
            self._close("a call was interrupted while it was being sent")
            raise

    def _read(self, length: int) -> bytes:
        parts = bytearray()
        while len(parts) < length:
            part = os.read(self._fd, length - len(parts))
            if not part:
                raise ChannelClosed("the supervisor closed the pipe")
            parts += part
        return bytes(parts)

    def _read_replies(self) -> None:
        try:
            while True:
                self._hand_over(self.read_frame())
        except (OSError, FrameError) as error:
            self._close(str(error))

    def _hand_over(self, frame: Frame) -> None:
        if frame["type"] not in ("agent_reply", "agent_refusal", "tool_result"):
            raise FrameError(f"the supervisor sent a {frame['type']} frame, which is no reply")
        slot = self._waiting.pop(field(frame, "call_id", int), None)
        if slot is None:
            raise FrameError(f"the supervisor replied to call {frame['call_id']}, which is not open")
        slot.put(frame)

    def _close(self, because: str) -> None:
        self._closed_because = self._closed_because or because
        while self._waiting:
            self._waiting.popitem()[1].put(None)

    def _leave_to_parent(self) -> None:
        os.close(self._fd)
        self._send_lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(MAX_CALLS_IN_FLIGHT)
        self._waiting = {}
        self._closed_because = "this is a forked child, and only the script's own process can call agents"
