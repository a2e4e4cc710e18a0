"""What one execution of a script knows: its task, its channel, and where in the workflow it is.

One process runs one script, so there is one session, installed by the runtime after the fork.
"""

import itertools
import json
from contextvars import ContextVar
from dataclasses import dataclass, field

from .channel import Channel
from .messages import Message

MATH = "math"
CODE = "code"


@dataclass(frozen=True)
class Task:
    """What the script is run on. `task_type` is math or code."""

    question: str
    task_type: str
    delivery_instruction: str


@dataclass
class Session:
    task: Task
    channel: Channel
    # Top-level runs that have reported their result.
    results: int = 0
    _visit_ids: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    def enter_node(self, node: str, node_type: str) -> int:
        """Reports that a node is entered from where the caller is; returns the visit's id."""
        visit_id = next(self._visit_ids)
        self._report("enter", visit_id, node, node_type, "")
        return visit_id

    def leave_node(self, visit_id: int, node: str, node_type: str, result_type: str) -> None:
        self._report("exit", visit_id, node, node_type, result_type)

    def report_result(self, result: Message, question: str) -> None:
        """Reports what a top-level run on a question returned."""
        content = result.content
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=str)
        self.channel.send(
            {
                "type": "result",
                "content": text,
                "result_type": result.message_type.value,
                "own_question": question.split() != self.task.question.split(),
            }
        )
        self.results += 1

    def _report(self, kind: str, visit_id: int, node: str, node_type: str, result_type: str) -> None:
        self.channel.send(
            {
                "type": "node_event",
                "kind": kind,
                "visit_id": visit_id,
                "parent_visit_id": current_visit.get(),
                "node": node,
                "node_type": node_type,
                "result_type": result_type,
            }
        )


# The visit that the caller is within, 0 at the top.
current_visit: ContextVar[int] = ContextVar("current_visit", default=0)

_session: Session | None = None


def install(session: Session) -> None:
    global _session
    _session = session


def current() -> Session:
    """The session of this process. Raises RuntimeError outside the sandbox."""
    if _session is None:
        raise RuntimeError("workflows run only in the sandbox: hand the script to workflow.runtime.main")
    return _session
