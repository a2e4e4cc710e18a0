"""The node that asks several agents and takes one answer."""

from collections.abc import Sequence
from typing import Any

from . import checks, prompts, votes
from .gather import answered, ask_all, distinct_names, no_answer, with_answers
from .messages import Context, Message, MessageType
from .node import WorkflowNode

STRATEGIES = ("majority_vote", "weighted_vote", "consensus")


class EnsembleNode(WorkflowNode):
    """Asks all agents side by side, then takes one answer.

    majority_vote: if they differ and there is a `consensus_agent`, it decides; else the most frequent
    answer, ties to the first. weighted_vote: the answer with the greatest total weight, ties to the first.
    consensus: the `consensus_agent` always decides. A member that fails has no vote, and takes nothing from
    the others' names and weights.
    """

    def __init__(
        self,
        name: str,
        agents: Sequence[WorkflowNode],
        strategy: str = "majority_vote",
        consensus_agent: WorkflowNode | None = None,
        weights: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name, **kwargs)
        checks.instances("EnsembleNode", "agents", agents, WorkflowNode)
        checks.choice("EnsembleNode", "strategy", strategy, STRATEGIES)
        checks.instance("EnsembleNode", "consensus_agent", consensus_agent, WorkflowNode, optional=True)
        if strategy == "consensus" and consensus_agent is None:
            raise ValueError("EnsembleNode: strategy consensus needs a consensus_agent")
        if weights is not None:
            checks.numbers("EnsembleNode", "weights", weights)
            if len(weights) != len(agents):
                raise ValueError(f"EnsembleNode: {len(weights)} weights for {len(agents)} agents: give one for each")
        self.agents = list(agents)
        self.strategy = strategy
        self.consensus_agent = consensus_agent
        self.weights = [1.0] * len(agents) if weights is None else list(weights)

    def process(self, context: Context) -> Message:
        messages = ask_all(self.agents, [context.branch() for _ in self.agents])
        members = answered(messages)
        if all(member is None for member in members):
            return no_answer("agents", messages)
        answers = [None if member is None else votes.answer_of(member.text) for member in members]
        metadata = {
            "strategy": self.strategy,
            "num_agents": len(self.agents),
            "all_responses": [member.content for member in members if member is not None],
            "votes": answers,
        }
        if self._needs_judge(answers):
            decision = self._judged(context, members)
            metadata["judge"] = decision.sender
            return Message(decision.content, decision.message_type, metadata)
        weights = self.weights if self.strategy == "weighted_vote" else [1.0] * len(self.agents)
        return Message(self._voted(members, answers, weights).content, MessageType.AGENT_RESPONSE, metadata)

    def _needs_judge(self, answers: Sequence[str | None]) -> bool:
        if self.consensus_agent is None or self.strategy == "weighted_vote":
            return False
        return self.strategy == "consensus" or votes.is_split(answers)

    def _judged(self, context: Context, members: Sequence[Message | None]) -> Message:
        assert self.consensus_agent is not None
        names = distinct_names(self.agents)
        return self.consensus_agent(with_answers(context, names, members, prompts.JUDGE_REQUEST))

    def _voted(
        self, members: Sequence[Message | None], answers: Sequence[str | None], weights: Sequence[float]
    ) -> Message:
        """The member whose answer wins; if nobody gave an answer, the first of the greatest weight."""
        position = votes.winner(answers, weights)
        if position is None:
            spoke = [index for index, member in enumerate(members) if member is not None]
            position = max(spoke, key=lambda index: weights[index])
        member = members[position]
        assert member is not None
        return member
