"""The node that plays one agent."""

from typing import Any

from . import checks, prompts, replies, session, tools
from .channel import ChatMessage
from .concurrency import next_label
from .messages import Context, Message, MessageType
from .node import WorkflowNode


class AgentNode(WorkflowNode):
    """One agent of the executor's. Each time that it is run it begins a new conversation.

    It sees its system prompt, the task's delivery instruction and its tools, then the question and what
    earlier agents delivered. A fenced python block in a reply is run and its output fed back; else a
    `<tool_call>` goes to the registry; else the reply is its answer. After `max_turns` turns that reacted
    to a tool, one final answer is asked for.

    `ai_client` and `enable_conversation_logging` are accepted and have no effect: the sandbox routes and
    records all turns.
    """

    def __init__(
        self,
        name: str,
        system_prompt: str,
        tool_registry: tools.ToolRegistry | None = None,
        ai_client: object = None,
        max_turns: int = 10,
        enable_conversation_logging: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(name, **kwargs)
        checks.text("AgentNode", "system_prompt", system_prompt)
        checks.instance("AgentNode", "tool_registry", tool_registry, tools.ToolRegistry, optional=True)
        checks.count("AgentNode", "max_turns", max_turns, at_least=0)
        checks.flag("AgentNode", "enable_conversation_logging", enable_conversation_logging)
        self.system_prompt = system_prompt
        self.tool_registry = tools.ToolRegistry() if tool_registry is None else tool_registry
        self.max_turns = max_turns

    def process(self, context: Context) -> Message:
        running = session.current()
        system = prompts.system_text(
            self.system_prompt, running.task.delivery_instruction, self.tool_registry.get_tool_schemas()
        )
        new = [ChatMessage("system", system)] if system else []
        new.append(ChatMessage("user", prompts.user_text(context)))
        conversation_id = f"{self.name}#{next_label()}"
        turn = tools.AgentTurn(conversation_id)
        already_run: set[str] = set()
        tool_turns = 0
        while True:
            reply = running.channel.call_agent(conversation_id, self.name, new, turn.tool_run_ids)
            turn = tools.AgentTurn(conversation_id)
            results = [] if tool_turns > self.max_turns else self._react(turn, reply, already_run)
            if not results:
                break
            tool_turns += 1
            new = [ChatMessage("tool", result) for result in results]
            if tool_turns > self.max_turns:
                new.append(ChatMessage("user", prompts.FINAL_REQUEST))
        return Message(
            content=reply,
            message_type=MessageType.AGENT_RESPONSE,
            metadata={"agent_name": self.name, "conversation_id": conversation_id, "tool_turns": tool_turns},
        )

    def _react(self, turn: tools.AgentTurn, reply: str, already_run: set[str]) -> list[str]:
        """Runs what a reply asks for; the results, none for a final reply."""
        code = replies.python_block(reply)
        if code is not None and self._wants_run(code, reply, already_run):
            already_run.add(code)
            return [tools.run_python_for(turn, code)]
        return [tools.call_for(turn, self.tool_registry, call) for call in replies.tool_calls(reply)]

    def _wants_run(self, code: str, reply: str, already_run: set[str]) -> bool:
        """Whether a fenced block is a tool's input. In a code task it may as well be the answer, shown in a fence."""
        if session.current().task.task_type == session.MATH:
            return True
        return self.tool_registry.runs_python() and replies.solution(reply) is None and code not in already_run
