"""The node in which agents answer, see each other's answers, and answer again."""

from collections.abc import Sequence
from typing import Any

from . import checks, prompts
from .gather import answered, ask_all, distinct_names, no_answer, with_answers
from .messages import Context, Message
from .node import WorkflowNode


class DebateNode(WorkflowNode):
    """Agents answer in rounds, each run side by side, and a judge decides.

    Round 1 answers the question; in each later round every debater sees the answers of the round before; then the
    judge, the first debater if none is given, decides on the answers of the last round.
    """

    def __init__(
        self,
        name: str,
        debaters: Sequence[WorkflowNode],
        judge: WorkflowNode | None = None,
        num_rounds: int = 2,
        **kwargs: Any,
    ) -> None:
        super().__init__(name, **kwargs)
        checks.instances("DebateNode", "debaters", debaters, WorkflowNode)
        checks.instance("DebateNode", "judge", judge, WorkflowNode, optional=True)
        checks.count("DebateNode", "num_rounds", num_rounds, at_least=1)
        self.debaters = list(debaters)
        self.judge = self.debaters[0] if judge is None else judge
        self.num_rounds = num_rounds

    def process(self, context: Context) -> Message:
        names = distinct_names(self.debaters)
        contexts = [context.branch() for _ in self.debaters]
        history: list[list[str | None]] = []
        for _ in range(self.num_rounds):
            messages = ask_all(self.debaters, contexts)
            answers = answered(messages)
            if all(answer is None for answer in answers):
                return no_answer("debaters", messages)
            history.append([None if answer is None else answer.text for answer in answers])
            contexts = [with_answers(context, names, answers, prompts.DEBATE_REQUEST) for _ in self.debaters]
        decision = self.judge(with_answers(context, names, answers, prompts.JUDGE_REQUEST))
        return Message(
            decision.content,
            decision.message_type,
            {
                "num_rounds": self.num_rounds,
                "num_debaters": len(self.debaters),
                "debate_history": history,
                "judge": self.judge.name,
            },
        )
