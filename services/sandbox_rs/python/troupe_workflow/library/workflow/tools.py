"""Tools that a script gives to its agents, and python that runs in a process of its own."""

import inspect
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from . import checks, replies, session
from .channel import ChannelClosed, ToolResult

# Longest result of a script's own tool that an agent is shown, in characters.
MAX_RESULT_CHARS = 16_384

Tool = dict[str, Any]


class ToolRegistry:
    """Functions that agents may call by name. Parameters are a JSON schema, read off the signature when not given."""

    def __init__(self) -> None:
        self._tools: dict[str, Tool] = {}

    def register(
        self,
        name: str,
        func: Callable[..., Any],
        description: str = "",
        parameters: dict[str, Any] | None = None,
    ) -> None:
        checks.name("ToolRegistry.register", "name", name)
        checks.function("ToolRegistry.register", "func", func)
        checks.text("ToolRegistry.register", "description", description)
        checks.instance("ToolRegistry.register", "parameters", parameters, dict, optional=True)
        if parameters is not None:
            properties = parameters.get("properties", {})
            checks.instance("ToolRegistry.register", "parameters['properties']", properties, dict)
        self._tools[name] = {
            "function": func,
            "description": description,
            "parameters": _schema_of(func) if parameters is None else parameters,
        }

    def get_tool(self, name: str) -> Tool | None:
        return self._tools.get(name)

    def list_tools(self) -> list[str]:
        return list(self._tools)

    def get_tool_schemas(self) -> list[dict[str, Any]]:
        """The tools as in OpenAI's chat API."""
        return [
            {
                "type": "function",
                "function": {
                    "name": name,
                    "description": tool["description"],
                    "parameters": tool["parameters"],
                },
            }
            for name, tool in self._tools.items()
        ]

    def call_tool(self, name: str, parameters: dict[str, Any]) -> Any:
        """What the tool returns; ValueError when there is none of that name."""
        tool = self.get_tool(name)
        if tool is None:
            raise ValueError(f"there is no tool {name}; there are: {', '.join(self._tools) or 'none'}")
        return tool["function"](**parameters)

    def runs_python(self) -> bool:
        """Whether one of the tools takes code: python in a fence is then meant for it."""
        return any("code" in tool["parameters"].get("properties", {}) for tool in self._tools.values())


@dataclass
class AgentTurn:
    """The turn of an agent for which tools run: attested runs are noted in it."""

    conversation_id: str
    tool_run_ids: list[int] = field(default_factory=list)


_turn: ContextVar[AgentTurn | None] = ContextVar("agent_turn", default=None)


def run_python(code: str, timeout_seconds: float | None) -> str:
    """Runs code in a process of its own, outside the script, and returns what an agent is shown of it.

    Within an agent's turn the run is attested for that agent's conversation. Raises ChannelClosed.
    """
    turn = _turn.get()
    result = session.current().channel.call_tool(turn.conversation_id if turn else "", code, timeout_seconds)
    if turn:
        turn.tool_run_ids.append(result.tool_run_id)
    return shown_result(result)


def run_python_for(turn: AgentTurn, code: str) -> str:
    """As `run_python`, for a fenced block in an agent's reply."""
    return _within(turn, lambda: run_python(code, None))


def call_for(turn: AgentTurn, registry: ToolRegistry, call: str) -> str:
    """The result of one `<tool_call>`, as the agent is shown it; what goes wrong is told to the agent."""

    def attempt() -> str:
        try:
            name, arguments = replies.parse_tool_call(call)
            return shortened(str(registry.call_tool(name, arguments)))
        except ChannelClosed:
            raise
        except Exception as error:  # the tool is the script's own: it may raise anything
            return shortened(f"Error: {type(error).__name__}: {error}")

    return _within(turn, attempt)


def shown_result(result: ToolResult) -> str:
    """Output without the white space at its end; a verdict other than ok stands in a line of its own."""
    output = result.output.rstrip()
    if result.verdict == "ok":
        return output or "(no output)"
    return f"{output}\n[{result.verdict}]".lstrip("\n")


def shortened(text: str) -> str:
    if len(text) <= MAX_RESULT_CHARS:
        return text
    return f"{text[:MAX_RESULT_CHARS]}\n[{len(text) - MAX_RESULT_CHARS} more characters were cut]"


def _within(turn: AgentTurn, work: Callable[[], str]) -> str:
    token = _turn.set(turn)
    try:
        return work()
    finally:
        _turn.reset(token)


def _schema_of(func: Callable[..., Any]) -> dict[str, Any]:
    try:
        parameters = inspect.signature(func).parameters.values()
    except ValueError:
        # Some functions written in C have no signature.
        return {"type": "object", "properties": {}}
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    json_types = {int: "integer", float: "number", bool: "boolean", list: "array", dict: "object"}
    return {
        "type": "object",
        "properties": {p.name: {"type": json_types.get(p.annotation, "string")} for p in named},
        "required": [p.name for p in named if p.default is p.empty],
    }
