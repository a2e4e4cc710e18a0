"""Groups by id, and the two ways to compare a sample with its group."""

import math
from collections.abc import Mapping
from typing import Literal

from troupe_orchestrator.credit.types import Group, GroupBy, Outcomes, Role

StdForm = Literal["unbiased", "population", "none"]
Key = tuple[str, ...]


def group_by(role: Role, keys: Mapping[str, Key], rewards: Mapping[str, float]) -> tuple[Group, ...]:
    """Put samples that share a key into one group.

    Args:
        keys: the key of each sample, by id.
        rewards: the reward of each sample, by id.
    """
    members: dict[Key, list[str]] = {}
    for sample, key in keys.items():
        members.setdefault(key, []).append(sample)
    groups = []
    for key, ids in members.items():
        # fsum is exact, so that the order of the members changes no digit.
        mean = math.fsum(rewards[sample] for sample in ids) / len(ids)
        variance = math.fsum((rewards[sample] - mean) ** 2 for sample in ids) / len(ids)
        groups.append(Group(role, key, tuple(ids), mean, math.sqrt(variance)))
    return tuple(groups)


def designer_groups(outcomes: Outcomes) -> tuple[Group, ...]:
    """The M designs of each task, invalid ones among them."""
    keys = {design.design_id: (design.task_id,) for design in outcomes.designs}
    return group_by("designer", keys, outcomes.design_rewards)


def executor_groups(outcomes: Outcomes, by: GroupBy) -> tuple[Group, ...]:
    """All executions of each task, or the N of each design."""
    keys = {
        execution.execution_id: (execution.task_id,) if by == "task" else (execution.task_id, execution.design_id)
        for execution in outcomes.executions
    }
    return group_by("executor", keys, executor_rewards(outcomes))


def executor_rewards(outcomes: Outcomes) -> Mapping[str, float]:
    """Reward of each execution as the executor sees it, by id."""
    return {execution.execution_id: execution.reward_executor for execution in outcomes.executions}


def standardized(group: Group, rewards: Mapping[str, float], std: StdForm, epsilon: float) -> dict[str, float]:
    """(r − mean) / (std + ε) for each member; 0 in a group without variance. Without a std, r − mean."""
    if group.zero_variance:
        return dict.fromkeys(group.members, 0.0)
    size = len(group.members)
    scale = {
        "none": 1.0,
        "population": group.std + epsilon,
        "unbiased": group.std * math.sqrt(size / (size - 1)) + epsilon,
    }[std]
    return {sample: (rewards[sample] - group.mean) / scale for sample in group.members}


def leave_one_out(group: Group, rewards: Mapping[str, float]) -> dict[str, float]:
    """r minus the mean of the *other* members; 0 for a sample that is alone."""
    size = len(group.members)
    if size == 1 or group.zero_variance:
        return dict.fromkeys(group.members, 0.0)
    return {sample: (rewards[sample] - group.mean) * size / (size - 1) for sample in group.members}
