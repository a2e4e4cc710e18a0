"""What nodes pass to each other: messages, and the context that collects them in the course of a run."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from . import checks


class MessageType(Enum):
    """What a message is."""

    # The text that a run began with.
    USER_INPUT = "user_input"
    # What a node answered.
    AGENT_RESPONSE = "agent_response"
    TOOL_CALL = "tool_call"
    TOOL_RESULT = "tool_result"
    # For nodes that a script defines: something between.
    INTERMEDIATE = "intermediate"
    # For nodes that a script defines: the end of the matter.
    FINAL_RESULT = "final_result"
    # A node failed; a run stops at the first of these.
    ERROR = "error"


@dataclass
class Message:
    """One message. `sender` is the name of the node that it came from, None for the input."""

    content: Any
    message_type: MessageType
    metadata: dict[str, Any] = field(default_factory=dict)
    sender: str | None = None
    recipient: str | None = None

    def __post_init__(self) -> None:
        checks.instance("Message", "message_type", self.message_type, MessageType)
        checks.instance("Message", "metadata", self.metadata, dict)

    @property
    def text(self) -> str:
        """The content as text."""
        return self.content if isinstance(self.content, str) else str(self.content)

    def to_dict(self) -> dict[str, Any]:
        return {
            "content": self.content,
            "type": self.message_type.value,
            "metadata": self.metadata,
            "sender": self.sender,
            "recipient": self.recipient,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Message":
        return cls(
            content=data["content"],
            message_type=MessageType(data["type"]),
            metadata=data.get("metadata", {}),
            sender=data.get("sender"),
            recipient=data.get("recipient"),
        )


@dataclass
class Context:
    """The messages of one run in order, and a dictionary for whatever nodes want to tell each other."""

    messages: list[Message] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks.instance("Context", "messages", self.messages, list)
        checks.instance("Context", "state", self.state, dict)
        checks.instance("Context", "metadata", self.metadata, dict)

    def add_message(self, message: Message) -> None:
        checks.instance("Context.add_message", "message", message, Message)
        self.messages.append(message)

    def get_messages_by_type(self, message_type: MessageType) -> list[Message]:
        return [message for message in self.messages if message.message_type == message_type]

    def get_latest_message(self, message_type: MessageType | None = None) -> Message | None:
        """The last message, or the last of one type; None when there is none."""
        for message in reversed(self.messages):
            if message_type is None or message.message_type == message_type:
                return message
        return None

    def set_state(self, key: str, value: Any) -> None:
        self.state[key] = value

    def get_state(self, key: str, default: Any = None) -> Any:
        return self.state.get(key, default)

    def branch(self) -> "Context":
        """A context that sees what this one holds, and whose additions this one does not see."""
        return Context(list(self.messages), dict(self.state), dict(self.metadata))
