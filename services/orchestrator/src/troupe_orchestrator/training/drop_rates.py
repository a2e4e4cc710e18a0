"""How often tasks are dropped, by the length of their question. Pure.

Long questions make long transcripts, which are the first to meet a deadline or a restart. If they were dropped more often
than short ones, the run would learn from the short ones: this shows it.
"""

from collections.abc import Collection, Mapping

BUCKETS = (128, 512, 2048)
"""Upper ends, in characters. A question is in the first bucket that it is shorter than."""


def drop_rates(questions: Mapping[str, str], dropped: Collection[str]) -> dict[str, float]:
    """Share of a step's tasks that were dropped, for each bucket that had some.

    Args:
        questions: of the step's tasks, by task id.
        dropped: ids of those that were dropped.
    """
    tasks: dict[str, list[bool]] = {}
    for task_id, question in questions.items():
        tasks.setdefault(_bucket(len(question)), []).append(task_id in dropped)
    return {f"drop_rate/{bucket}": sum(gone) / len(gone) for bucket, gone in sorted(tasks.items())}


def _bucket(characters: int) -> str:
    for end in BUCKETS:
        if characters < end:
            return f"prompt_lt_{end}"
    return f"prompt_ge_{BUCKETS[-1]}"
