"""The node in which an answer is reviewed and improved."""

from dataclasses import dataclass
from typing import Any

from . import checks, prompts, verdicts, votes
from .messages import Context, Message, MessageType
from .node import WorkflowNode


@dataclass(frozen=True)
class Attempt:
    """An answer and the review of it."""

    answer: str
    review: str


class ReflectionNode(WorkflowNode):
    """The agent answers; then the critic reviews and the agent improves the answer, `num_iterations` times.

    The critic is the agent itself if none is given. It ends early when the critic states that the answer is
    correct, when an improvement leaves the answer as it was, or when the critic or the agent fails: an answer
    that exists is kept. Templates use {question}, {response}, {reflection} and {history}; other braces stay
    as they are. `include_history` shows earlier attempts to the agent.
    """

    def __init__(
        self,
        name: str,
        agent: WorkflowNode,
        num_iterations: int = 2,
        reflection_prompt: str | None = None,
        critic_agent: WorkflowNode | None = None,
        refinement_prompt: str | None = None,
        include_history: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(name, **kwargs)
        checks.instance("ReflectionNode", "agent", agent, WorkflowNode)
        checks.count("ReflectionNode", "num_iterations", num_iterations, at_least=0)
        checks.text("ReflectionNode", "reflection_prompt", reflection_prompt, optional=True)
        checks.instance("ReflectionNode", "critic_agent", critic_agent, WorkflowNode, optional=True)
        checks.text("ReflectionNode", "refinement_prompt", refinement_prompt, optional=True)
        checks.flag("ReflectionNode", "include_history", include_history)
        self.agent = agent
        self.num_iterations = num_iterations
        self.critic_agent = agent if critic_agent is None else critic_agent
        self.include_history = include_history
        self.reflection_prompt = reflection_prompt or prompts.REFLECTION_TEMPLATE
        self.refinement_prompt = refinement_prompt or (
            prompts.HISTORY_TEMPLATE if include_history else prompts.REFINEMENT_TEMPLATE
        )

    def process(self, context: Context) -> Message:
        first = self.agent(context.branch())
        if first.message_type == MessageType.ERROR:
            return Message(first.content, MessageType.ERROR, dict(first.metadata))
        question = prompts.user_text(context)
        answer = first.text
        attempts: list[Attempt] = []
        ended = "iterations"
        for _ in range(self.num_iterations):
            review = self._ask(self.critic_agent, context, self.reflection_prompt, question, answer, attempts)
            if review is None:
                ended = "critic_failed"
                break
            attempts.append(Attempt(answer, review))
            if verdicts.says_correct(review):
                ended = "verdict"
                break
            improved = self._ask(self.agent, context, self.refinement_prompt, question, answer, attempts)
            if improved is None:
                ended = "agent_failed"
                break
            unchanged = _same_answer(answer, improved)
            answer = improved
            if unchanged:
                ended = "unchanged"
                break
        return Message(
            answer,
            MessageType.AGENT_RESPONSE,
            {
                "num_iterations": len(attempts),
                "ended": ended,
                "generator_agent": self.agent.name,
                "critic_agent": self.critic_agent.name,
                "history": [{"response": attempt.answer, "reflection": attempt.review} for attempt in attempts],
            },
        )

    def _ask(
        self,
        node: WorkflowNode,
        context: Context,
        template: str,
        question: str,
        answer: str,
        attempts: list[Attempt],
    ) -> str | None:
        """What a node says to a filled template; None if it fails."""
        review = attempts[-1].review if attempts else ""
        earlier = attempts[:-1] if self.include_history else []
        prompt = prompts.fill(
            template,
            {
                "question": question,
                "response": prompts.shared_view(answer),
                "reflection": prompts.shared_view(review),
                "history": prompts.history_text(
                    (prompts.shared_view(attempt.answer), prompts.shared_view(attempt.review)) for attempt in earlier
                ),
            },
        )
        asked = Message(prompt, MessageType.USER_INPUT)
        message = node(Context([asked], dict(context.state), dict(context.metadata)))
        return None if message.message_type == MessageType.ERROR else message.text


def _same_answer(before: str, after: str) -> bool:
    """Whether two replies give the same answer, or say the same if they give none."""
    first, second = votes.answer_of(before), votes.answer_of(after)
    if first is None and second is None:
        return before.split() == after.split()
    return first == second
