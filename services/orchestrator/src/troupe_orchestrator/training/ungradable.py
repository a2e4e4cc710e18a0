"""Answers that no grader could grade, in a run's events: one condition for all of a step. Pure.

They count as wrong (`grading.workers` says why), so a run that says nothing of them would hide that a right answer may have
been one of them, or that the policy has learned to write what ends graders.
"""

from collections.abc import Sequence
from typing import Final

from troupe.v1 import training_pb2

from troupe_orchestrator.grading.grades import UNGRADABLE
from troupe_orchestrator.tree import ExecutionPayload, NodeKind, TaskPayload, Tree

_MOST: Final = 5
"""Tasks that are named."""


def ungradable_in(trees: Sequence[Tree]) -> list[tuple[str, str]]:
    """(task, reason) of each execution whose answer no grader could grade."""
    return [
        (tree.root.payload.task_id, node.payload.reason)
        for tree in trees
        for node in tree.of_kind(NodeKind.EXECUTION)
        if isinstance(tree.root.payload, TaskPayload)
        and isinstance(node.payload, ExecutionPayload)
        and UNGRADABLE in node.payload.flags
    ]


def ungradable_answers(found: Sequence[tuple[str, str]], answers: int, whose: str = "") -> list[training_pb2.Condition]:
    """What is told of a step's ungradable answers; nothing where it has none.

    Args:
        found: task and reason of each.
        answers: of how many.
        whose: answers, where they are not of the tasks that are trained on.
    """
    if not found:
        return []
    reasons = {task_id: reason.removeprefix(f"{UNGRADABLE}: ") for task_id, reason in found}
    named = ", ".join(f"{task_id} ({reason})" for task_id, reason in list(reasons.items())[:_MOST])
    it, counts = ("it", "counts") if len(found) == 1 else ("them", "count")
    return [
        training_pb2.Condition(
            reason="UngradableAnswers",
            message=f"{f'{whose}: ' if whose else ''}{len(found)} of {answers} answers ended every grader that tried {it}, "
            f"and {counts} as wrong: {named}{', …' if len(reasons) > _MOST else ''}",
            remedy="read some with `troupe trace`: where they are right, have the task ask for a closed form, or name a "
            "grader of your own in dataset.grader; where they are not, the policy has to unlearn them",
        )
    ]
