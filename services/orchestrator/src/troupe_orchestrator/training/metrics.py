"""Scalars of a step, read off its trees. Every execution counts once."""

from collections.abc import Sequence

from troupe_orchestrator.grading.grades import UNGRADABLE
from troupe_orchestrator.run_config import RunConfig
from troupe_orchestrator.stages import StepPlan
from troupe_orchestrator.training.assembly import ROLES, advantages_of, outcomes_of
from troupe_orchestrator.tree import (
    DesignPayload,
    ExecutionPayload,
    ExecutionStatus,
    NodeKind,
    Tree,
    generated_tokens,
)


def rollout_metrics(trees: Sequence[Tree]) -> dict[str, float]:
    """Rewards, success, validity and volume of a step.

    `success` is over all executions that the plan asked for: those of an invalid design count as failures, else a
    designer that writes fewer valid scripts would seem to get better.
    """
    designs = [node.payload for tree in trees for node in tree.of_kind(NodeKind.DESIGN)]
    executions = [node.payload for tree in trees for node in tree.of_kind(NodeKind.EXECUTION)]
    valid = sum(isinstance(design, DesignPayload) and not design.problems for design in designs)
    run = [execution for execution in executions if isinstance(execution, ExecutionPayload)]
    outcomes = outcomes_of(trees)
    per_design = len(run) / valid if valid else 0.0
    successes = sum(execution.success for execution in run)
    metrics = {
        "designs": float(len(designs)),
        "executions": float(len(run)),
        "valid_scripts": valid / len(designs),
        "success": successes / (len(designs) * per_design) if run else 0.0,
        "success_of_valid": successes / len(run) if run else 0.0,
        "reward_designer": sum(outcomes.design_rewards.values()) / len(designs),
        "reward_executor": sum(each.reward_executor for each in outcomes.executions) / len(run) if run else 0.0,
        "policy_faults": float(sum(execution.status is ExecutionStatus.POLICY_FAULT for execution in run)),
        "ungradable": float(sum(UNGRADABLE in execution.flags for execution in run)),
        "agent_calls": sum(execution.agent_calls for execution in run) / len(run) if run else 0.0,
        "script_cpu_seconds": sum(execution.cpu_seconds for execution in run),
        "generated_tokens": float(sum(generated_tokens(tree.nodes) for tree in trees)),
        "answer_in_script": _share(run, "answer_in_script"),
        "own_question": _share(run, "own_question"),
    }
    for pattern in {execution.executed_pattern for execution in run}:
        metrics[f"pattern/{pattern}"] = sum(execution.executed_pattern == pattern for execution in run) / len(run)
    return metrics


def credit_metrics(trees: Sequence[Tree], config: RunConfig, plan: StepPlan) -> dict[str, float]:
    """Share of the groups in which all samples have one reward: nothing is learned from those.

    `zero_variance` is over the groups of the roles that the step trains, `zero_variance_ROLE` over those of one role.
    """
    groups = advantages_of(trees, config).groups
    shares = {
        f"zero_variance_{role}": [group.zero_variance for group in groups if group.role == role]
        for role in ("designer", "executor")
    }
    shares["zero_variance"] = [group.zero_variance for group in groups if group.role in ROLES[plan.trains]]
    return {name: sum(flags) / len(flags) for name, flags in shares.items() if flags}


def _share(executions: Sequence[ExecutionPayload], flag: str) -> float:
    return sum(flag in execution.flags for execution in executions) / len(executions) if executions else 0.0
