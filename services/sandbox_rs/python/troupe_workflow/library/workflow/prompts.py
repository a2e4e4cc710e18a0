r"""Every word that the library itself says to an agent. Pure, and stable: policies are trained on these texts.

system   the agent's system prompt
         the task's delivery instruction
         its tools, if it has any
user     the question
         NAME: what NAME delivered            one for each earlier agent
         a closing request                    for judges and debaters
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from . import replies
from .messages import Context, Message, MessageType

FINAL_REQUEST = "Give your final answer now. Use no tool."
DEBATE_REQUEST = "Compare these answers and give your improved answer."
JUDGE_REQUEST = "Compare these answers and give the right answer."

REFLECTION_TEMPLATE = (
    "{question}\n\nAnswer:\n{response}\n\n"
    "Check this answer. Say what is wrong. End with VERDICT: CORRECT or VERDICT: INCORRECT."
)
REFINEMENT_TEMPLATE = "{question}\n\nYour answer:\n{response}\n\nReview:\n{reflection}\n\nGive your improved answer."
HISTORY_TEMPLATE = (
    "{question}\n\nEarlier attempts:\n{history}\n\nYour answer:\n{response}\n\nReview:\n{reflection}\n\n"
    "Give your improved answer."
)

# Key of a message's metadata: the last line of the prompt that it leads to.
CLOSING = "closing_request"

_FROM_NODES = (
    MessageType.AGENT_RESPONSE,
    MessageType.TOOL_RESULT,
    MessageType.INTERMEDIATE,
    MessageType.FINAL_RESULT,
)
_FIELD = re.compile(r"\{(question|response|reflection|history)\}")


def system_text(system_prompt: str, delivery_instruction: str, tool_schemas: Sequence[Mapping[str, Any]]) -> str:
    """The system message of an agent; empty parts take no line."""
    tools = ""
    if tool_schemas:
        listed = "\n".join(json.dumps(schema, ensure_ascii=False) for schema in tool_schemas)
        tools = (
            f"Tools:\n{listed}\n"
            'To use one, write <tool_call>{"name": "TOOL", "arguments": {...}}</tool_call> and stop.'
        )
    return "\n".join(part for part in (system_prompt, delivery_instruction, tools) if part)


def question_of(context: Context) -> Message:
    """The message that holds the question: the first input, else the latest message. ValueError in an empty context."""
    inputs = context.get_messages_by_type(MessageType.USER_INPUT)
    question = inputs[0] if inputs else context.get_latest_message()
    if question is None:
        raise ValueError("the context holds no message: add the question as a USER_INPUT message first")
    return question


def user_text(context: Context) -> str:
    """The user message of an agent in a context: for the first agent exactly the question."""
    question = question_of(context)
    latest: dict[str, Message] = {}
    for message in context.messages:
        if message is not question and message.message_type in _FROM_NODES:
            sender = message.sender or "Agent"
            # Taken out first, so that the order is that of the messages shown.
            latest.pop(sender, None)
            latest[sender] = message
    lines = [question.text]
    lines += [
        f"{sender}: {replies.delivery(message.text) or message.text.strip()}" for sender, message in latest.items()
    ]
    closing = question.metadata.get(CLOSING)
    return "\n".join([*lines, closing] if closing else lines)


def shared_view(reply: str) -> str:
    """What critics, judges and debaters see of a reply: its delivery and answer, or all of it without a delivery."""
    delivered = replies.delivery(reply)
    if delivered is None:
        return reply.strip()
    program, value = replies.solution(reply), replies.boxed(reply)
    if program is not None and program not in (delivered, replies.solution(delivered)):
        return f"{delivered}\n<solution>\n{program}\n</solution>"
    if program is None and value and value not in (delivered, replies.boxed(delivered)):
        return f"{delivered}\n\\boxed{{{value}}}"
    return delivered


def fill(template: str, fields: Mapping[str, str]) -> str:
    """Replaces {question}, {response}, {reflection} and {history} once, and no other brace."""
    return _FIELD.sub(lambda match: fields.get(match.group(1), match.group(0)), template)


def history_text(attempts: Iterable[tuple[str, str]]) -> str:
    """Earlier answers with their reviews, for {history}."""
    return "\n".join(
        f"{number}. {answer}\nReview: {review}" for number, (answer, review) in enumerate(attempts, start=1)
    )
