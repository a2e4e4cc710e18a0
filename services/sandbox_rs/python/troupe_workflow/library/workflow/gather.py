"""How nodes that combine others ask them: side by side on one question, and with each other's answers before them."""

from collections.abc import Sequence
from functools import partial

from . import prompts
from .concurrency import run_all
from .messages import Context, Message, MessageType
from .node import WorkflowNode


def ask_all(nodes: Sequence[WorkflowNode], contexts: Sequence[Context]) -> list[Message]:
    """Each node's answer to its context, in the nodes' order; a failed one's is its ERROR message."""
    return run_all([partial(node, context) for node, context in zip(nodes, contexts, strict=True)])


def distinct_names(nodes: Sequence[WorkflowNode]) -> list[str]:
    """The nodes' names, numbered from the second of a name on: each answer keeps a line of its own."""
    seen: dict[str, int] = {}
    names = []
    for node in nodes:
        seen[node.name] = seen.get(node.name, 0) + 1
        names.append(node.name if seen[node.name] == 1 else f"{node.name} {seen[node.name]}")
    return names


def with_answers(context: Context, names: Sequence[str], answers: Sequence[Message | None], closing: str) -> Context:
    """The context with the named answers and a closing request added; None stands for a failed answer."""
    question = prompts.question_of(context)
    asked = Message(question.content, MessageType.USER_INPUT, {**question.metadata, prompts.CLOSING: closing})
    shown = [
        Message(prompts.shared_view(answer.text), MessageType.AGENT_RESPONSE, sender=name)
        for name, answer in zip(names, answers, strict=True)
        if answer is not None
    ]
    earlier = [message for message in context.messages if message is not question]
    return Context([asked, *earlier, *shown], dict(context.state), dict(context.metadata))


def answered(messages: Sequence[Message]) -> list[Message | None]:
    """The messages, with None in the place of each ERROR: nothing moves up."""
    return [None if message.message_type == MessageType.ERROR else message for message in messages]


def no_answer(what: str, messages: Sequence[Message]) -> Message:
    """The ERROR message of a node of which every member failed."""
    reasons = "; ".join(message.text for message in messages)
    return Message(f"all {what} failed: {reasons}", MessageType.ERROR)
