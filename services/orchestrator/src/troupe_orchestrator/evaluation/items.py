"""From what became of one sample of one problem to its record. Pure."""

from collections.abc import Mapping

from troupe.v1 import evaluation_pb2

from troupe_orchestrator.datasets.task import Task
from troupe_orchestrator.evaluation.job_log import FinishedItem
from troupe_orchestrator.store.evals import ItemRecord
from troupe_orchestrator.training.policies import parse_version
from troupe_orchestrator.tree import DesignPayload, ExecutionPayload, NodeKind, Tree, generated_tokens

FAULT = "infrastructure_fault"
"""Status of an item that ended in faults of ours."""


def finished_item(task: Task, sample: int, tree: Tree, versions: Mapping[str, str]) -> FinishedItem:
    """The item of a tree with one design."""
    (design,) = tree.of_kind(NodeKind.DESIGN)
    assert isinstance(design.payload, DesignPayload)
    executions = tree.children(design.id, NodeKind.EXECUTION)
    if executions:
        (execution,) = executions
        assert isinstance(execution.payload, ExecutionPayload)
        item = evaluation_pb2.EvalItem(
            execution_id=execution.id,
            success=execution.payload.success,
            valid_script=True,
            answer=execution.payload.answer,
            status=execution.payload.status.value,
            reason=execution.payload.reason,
            pattern=execution.payload.executed_pattern,
        )
        parseable = execution.payload.parseable
    else:
        item = evaluation_pb2.EvalItem(status="policy_fault", reason="; ".join(design.payload.problems))
        parseable = False
    item.generated_tokens = generated_tokens(tree.nodes)
    return FinishedItem(_record(task, sample, item, versions, parseable), tree)


def faulted_item(task: Task, sample: int, reason: str, versions: Mapping[str, str]) -> FinishedItem:
    """An item whose attempts all ended in faults of ours."""
    item = evaluation_pb2.EvalItem(status=FAULT, reason=reason)
    return FinishedItem(_record(task, sample, item, versions, parseable=False), None)


def _record(
    task: Task, sample: int, item: evaluation_pb2.EvalItem, versions: Mapping[str, str], parseable: bool
) -> ItemRecord:
    item.problem_id = task.task_id
    item.sample = sample
    for role, field in (("designer", item.designer_version), ("executor", item.executor_version)):
        if role in versions:
            field.CopyFrom(parse_version(versions[role]))
    return ItemRecord(
        problem_id=task.task_id,
        sample=sample,
        family=task.family,
        parseable=parseable,
        faulted=item.status == FAULT,
        payload=item.SerializeToString(deterministic=True),
    )
