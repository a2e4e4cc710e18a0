"""Workflow node `longest`: asks every agent and keeps the longest reply. Runs in the sandbox: standard library only."""

from workflow import Context, Message, MessageType, WorkflowNode


class LongestNode(WorkflowNode):
    def __init__(self, name: str, agents: list[WorkflowNode]) -> None:
        super().__init__(name)
        self.agents = agents

    def process(self, context: Context) -> Message:
        replies = [agent(context.branch()) for agent in self.agents]
        answered = [reply for reply in replies if reply.message_type != MessageType.ERROR] or replies
        longest = max(answered, key=lambda reply: len(reply.text))
        return Message(longest.text, longest.message_type, {"asked": len(replies)})
