"""What one execution may spend, reckoned so that the same transcripts always give the same refusals. Pure.

Members of an ensemble run side by side, and who of them is faster is chance. So nothing that is shared between conversations
ever refuses one of them:

- Within a conversation turns follow each other: its budget of turns refuses the next one, whatever else runs.
- Calls and tokens of the whole execution are summed. As nothing is refused before the sum is overdrawn, what a script asks
  for in all, and so whether it overdraws, is a function of its transcripts and not of time. An execution that overdraws ends
  there and is worth nothing.

When it overdraws in the middle of a fan-out, who of the members had got how far is chance again: of such an execution only
those conversations are kept that had ended before the fan-out began. The library numbers conversations by their place in the
script (`Solver#2`, and `Solver#3.1.1` in the first branch of fan-out 3), which is how that is known. A script that starts
threads of its own has given this up, for itself.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from troupe_orchestrator.rollout.conversations import Conversation
from troupe_orchestrator.run_config import Budgets

WALL_PER_CPU_SECOND: Final = 4
"""Wall clock that a program without agents may take for each of its CPU seconds: only one that sleeps needs as much."""

Place = tuple[tuple[int, ...], str]
"""Where in its script a conversation stands. Ids that the library did not make come last, by their text."""
_NOWHERE = (1 << 62,)


@dataclass(slots=True)
class Account:
    """What an execution has spent."""

    budgets: Budgets
    agent_calls: int = 0
    tokens: int = 0

    def overdrawn(self) -> str:
        """Why the execution is over; empty while it is not. One text, since which sum went first may be chance."""
        if self.agent_calls <= self.budgets.agent_calls and self.tokens <= self.budgets.tokens:
            return ""
        return f"overdrawn: more than {self.budgets.agent_calls} agent calls or {self.budgets.tokens} tokens"

    def refusal(self, turns: int) -> str:
        """Why a conversation gets no further turn, empty if it does."""
        if turns < self.budgets.turns:
            return ""
        return f"the conversation's budget of {self.budgets.turns} turns is spent"


def place_of(conversation_id: str) -> Place:
    """The place that the library put into an id."""
    label = conversation_id.rpartition("#")[2]
    parts = label.split(".")
    if all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        return tuple(int(part) for part in parts), conversation_id
    return _NOWHERE, conversation_id


def in_order(conversations: Iterable[Conversation]) -> list[Conversation]:
    """The conversations in the order of the script."""
    return sorted(conversations, key=lambda conversation: place_of(conversation.conversation_id))


def settled(conversations: Iterable[Conversation], overdrawing: str) -> list[Conversation]:
    """What is kept of an execution that the conversation `overdrawing` overdrew, in the order of the script."""
    place, _ = place_of(overdrawing)
    return [
        conversation
        for conversation in in_order(conversations)
        if place_of(conversation.conversation_id)[0][0] < place[0]
        or (len(place) == 1 and place != _NOWHERE and conversation.conversation_id == overdrawing)
    ]
