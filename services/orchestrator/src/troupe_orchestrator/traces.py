"""One execution, whole, read back from the stored trees: what `troupe trace` shows."""

import asyncio
from pathlib import Path

from troupe.v1 import common_pb2, training_pb2
from troupe_contracts.errors import DataLoss, InvalidArgument, NotFound

from troupe_orchestrator.credit.types import Advantages
from troupe_orchestrator.run_config import ConfigError, parse_run_config
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.executions import StoredExecution, find_execution
from troupe_orchestrator.store.runs import get_run
from troupe_orchestrator.store.trees import TreesDamagedError, read_trees
from troupe_orchestrator.training.assembly import advantages_of, total_reward
from troupe_orchestrator.tree import (
    ConversationPayload,
    DesignPayload,
    ExecutionPayload,
    Node,
    NodeKind,
    TaskPayload,
    Tree,
)

_MIN_PREFIX = 6
_ROLES = {
    "system": common_pb2.MESSAGE_ROLE_SYSTEM,
    "user": common_pb2.MESSAGE_ROLE_USER,
    "assistant": common_pb2.MESSAGE_ROLE_ASSISTANT,
    "tool": common_pb2.MESSAGE_ROLE_TOOL,
}


async def trace_execution(database: Database, prefix: str) -> training_pb2.ExecutionTrace:
    """The execution whose id begins with `prefix`.

    Raises:
        InvalidArgument: the prefix is too short, or several executions begin with it.
        NotFound: none does, or its trees were collected.
        DataLoss: the file of its trees is gone, or is not the one that was stored.
    """
    if len(prefix) < _MIN_PREFIX:
        raise InvalidArgument("execution_id", f"{prefix!r} is too short: give at least {_MIN_PREFIX} characters")
    found = await find_execution(database, prefix)
    if not found:
        raise NotFound("execution", prefix)
    if len(found) > 1:
        raise InvalidArgument("execution_id", f"{prefix!r} begins several executions: give more of it")
    (stored,) = found
    if stored.collected:
        raise NotFound(
            "execution",
            prefix,
            f"the trees of step {stored.step} of run {stored.scope} were collected by its `retention.trees`; "
            "`retention: {trees: all}` keeps them",
        )
    trees = await _trees(stored)
    run = await get_run(database, stored.scope)
    advantages = None if run is None else await asyncio.to_thread(_advantages, trees, run.config)
    tree, execution = next(
        (tree, node) for tree in trees for node in tree.of_kind(NodeKind.EXECUTION) if node.id == stored.execution_id
    )
    return _message(tree, execution, stored.scope, stored.step, advantages)


def _advantages(trees: list[Tree], config: str) -> Advantages | None:
    """As a run's config reckons them; None where it is refused by now."""
    try:
        return advantages_of(trees, parse_run_config(config))
    except ConfigError:
        return None


async def _trees(stored: StoredExecution) -> list[Tree]:
    try:
        return await asyncio.to_thread(read_trees, Path(stored.path), stored.digest)
    except (OSError, TreesDamagedError) as error:
        # Eval jobs have no steps.
        where = f"step {stored.step} of run {stored.scope}" if stored.step else f"eval job {stored.scope}"
        raise DataLoss(
            f"the trees of {where} cannot be read: {error}; put it back from a copy. What was trained, graded and "
            "counted stands without it"
        ) from error


def _message(
    tree: Tree, execution: Node, scope: str, step: int, advantages: Advantages | None
) -> training_pb2.ExecutionTrace:
    task, record = tree.root.payload, execution.payload
    design_node = next(node for node in tree.of_kind(NodeKind.DESIGN) if node.id == execution.parent_id)
    design = design_node.payload
    assert isinstance(task, TaskPayload)
    assert isinstance(record, ExecutionPayload)
    assert isinstance(design, DesignPayload)
    siblings = [
        node.payload
        for node in tree.children(design_node.id, NodeKind.EXECUTION)
        if isinstance(node.payload, ExecutionPayload)
    ]
    return training_pb2.ExecutionTrace(
        execution_id=execution.id,
        run_id=scope,
        step=step,
        task_id=task.task_id,
        question=task.question,
        design_id=design_node.id,
        designer_text=design.text,
        script=design.script,
        declared_pattern=design.declared_pattern,
        executed_pattern=record.executed_pattern,
        conversations=[_conversation(node) for node in tree.children(execution.id, NodeKind.CONVERSATION)],
        status=record.status.value,
        reason=record.reason,
        answer=record.answer,
        reward=total_reward(record.terms, "executor"),
        designer_reward=sum(total_reward(each.terms, "designer") for each in siblings) / len(siblings),
        reward_terms=[
            training_pb2.RewardTerm(
                role=common_pb2.ROLE_DESIGNER if term.role == "designer" else common_pb2.ROLE_EXECUTOR,
                name=term.name,
                value=term.value,
                weight=term.weight,
            )
            for term in record.terms
        ],
        executor_advantage=None if advantages is None else advantages.executor[execution.id],
        designer_advantage=None if advantages is None else advantages.designer[design_node.id],
        flags=record.flags,
    )


def _conversation(node: Node) -> training_pb2.TracedConversation:
    payload = node.payload
    assert isinstance(payload, ConversationPayload)
    generated = 0 if node.tokens is None else node.tokens.generated_count
    total = 0 if node.tokens is None else len(node.tokens.token_ids)
    return training_pb2.TracedConversation(
        conversation_id=payload.conversation_id,
        agent=payload.agent,
        messages=[
            common_pb2.ChatMessage(role=_ROLES[message.role], content=message.content) for message in payload.messages
        ],
        inserted_tokens=total - generated,
        generated_tokens=generated,
    )
