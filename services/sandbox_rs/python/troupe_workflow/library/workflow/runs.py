"""What workflows and graphs have in common: they run on a question, and the top-level run reports its result."""

import itertools
from abc import ABC, abstractmethod
from contextvars import ContextVar
from typing import Any

from . import checks, prompts, session
from .messages import Context, Message, MessageType

_creations = itertools.count(1)
_within_run: ContextVar[bool] = ContextVar("within_run", default=False)


class Runnable(ABC):
    """Something that runs on a question and returns the last message."""

    def __init__(self, name: str) -> None:
        checks.name(type(self).__name__, "name", name)
        self.name = name
        # Which of several was defined last.
        self.creation = next(_creations)

    def run(self, input_message: str, initial_state: dict[str, Any] | None = None) -> Message:
        """Runs on a question. Returns the last message, or the first ERROR."""
        owner = f"{type(self).__name__}.run"
        checks.text(owner, "input_message", input_message)
        checks.instance(owner, "initial_state", initial_state, dict, optional=True)
        question = Message(content=input_message, message_type=MessageType.USER_INPUT)
        return self.run_with_context(Context(messages=[question], state=dict(initial_state or {})))

    def run_with_context(self, context: Context) -> Message:
        """Runs on a context that holds the question, and adds to it."""
        checks.instance(f"{type(self).__name__}.run_with_context", "context", context, Context)
        running = session.current()
        question = prompts.question_of(context).text
        top_level = not _within_run.get() and session.current_visit.get() == 0
        token = _within_run.set(True)
        try:
            result = self._execute(context)
        finally:
            _within_run.reset(token)
        if top_level:
            running.report_result(result, question)
        return result

    @abstractmethod
    def _execute(self, context: Context) -> Message:
        """Runs the nodes; the last message, or the first ERROR."""


def last_message(context: Context) -> Message:
    """The latest message of a context that holds at least the question."""
    message = context.get_latest_message()
    assert message is not None
    return message
