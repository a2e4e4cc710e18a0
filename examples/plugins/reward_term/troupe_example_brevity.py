"""Reward term `brevity`: 1 for a successful execution whose agents end in few words, falling to 0 at 200 words each."""

from troupe_orchestrator.rewards import ExecutionFacts


def brevity(facts: ExecutionFacts) -> float:
    if not facts.success or not facts.last_turns:
        return 0.0
    words = sum(len(turn.split()) for turn in facts.last_turns) / len(facts.last_turns)
    return max(0.0, 1.0 - words / 200)
