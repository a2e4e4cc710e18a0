"""The base of all nodes."""

import sys
import traceback
from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING, Any

from . import checks, session
from .channel import AgentRefused, ChannelClosed
from .messages import Context, Message, MessageType

if TYPE_CHECKING:
    import logging


class WorkflowNode(ABC):
    """One unit of a workflow.

    Subclasses define `process`; calling a node runs it and appends its result to the context. An exception in
    `process` becomes an ERROR message. Further keyword arguments are kept as `config` and have no effect of
    their own.
    """

    def __init__(self, name: str, **kwargs: Any) -> None:
        checks.name(type(self).__name__, "name", name)
        self.name = name
        self.config = kwargs

    @cached_property
    def logger(self) -> "logging.Logger":
        # Imported when a script asks for it: no node needs it.
        import logging

        return logging.getLogger(f"{type(self).__name__}.{self.name}")

    @abstractmethod
    def process(self, context: Context) -> Message:
        """The node's answer to a context."""

    def __call__(self, context: Context) -> Message:
        checks.instance(self.name, "context", context, Context)
        running = session.current()
        node_type = _reported_type(type(self))
        visit_id = running.enter_node(self.name, node_type)
        token = session.current_visit.set(visit_id)
        try:
            result = self.process(context)
            checks.instance(self.name, "the result of process", result, Message)
        except ChannelClosed:
            # Nothing that a workflow could do would get an answer any more.
            raise
        except Exception as error:  # what a node of the script's own raises is not known here
            if not isinstance(error, AgentRefused):
                traceback.print_exc(file=sys.stderr)
            result = Message(
                content=f"{type(error).__name__}: {error}",
                message_type=MessageType.ERROR,
                metadata={"exception_type": type(error).__name__, "node": self.name},
            )
        finally:
            session.current_visit.reset(token)
        running.leave_node(visit_id, self.name, node_type, result.message_type.value)
        result.sender = self.name
        context.add_message(result)
        return result


def _reported_type(cls: type) -> str:
    """The library's class that a node is, for the trace; its own class where a script or a plug-in made it from scratch."""
    for base in cls.__mro__:
        if base is WorkflowNode:
            break
        if base.__module__.startswith(f"{__package__}.") and not base.__module__.startswith(f"{__package__}.plugins."):
            return base.__name__
    return cls.__name__
