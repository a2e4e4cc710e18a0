"""The rollout tree: task, designs, executions, conversations.

One flat list of nodes; every node has an id, its parent's id, a kind and an attempt, and nesting is nowhere hard-wired.
Ids are a hash of (scope, step, task, path, attempt), so the same work gets the same id on every machine and no file of an
earlier step or attempt can be mistaken for it. Everything downstream (credit, batches, traces, metrics) is a function of
these nodes.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b
from typing import Literal

import numpy as np
from numpy.typing import NDArray

SCHEMA_VERSION = 1


class NodeKind(StrEnum):
    TASK = "task"
    DESIGN = "design"
    EXECUTION = "execution"
    CONVERSATION = "conversation"


class ExecutionStatus(StrEnum):
    OK = "ok"
    """It ended with an answer; right or wrong is the grade's business."""
    POLICY_FAULT = "policy_fault"
    """The policy's doing: rewarded as such and trained on."""


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A conversation's tokens, exactly as the engine saw and sampled them.

    `log_probs` has one value per *generated* token, in order; runs partition `token_ids`.
    """

    token_ids: NDArray[np.int32]
    run_generated: NDArray[np.bool_]
    run_lengths: NDArray[np.int32]
    run_versions: tuple[str, ...]
    """Per run `lineage:number`, empty for inserted runs."""
    log_probs: NDArray[np.float32]

    def generated_mask(self) -> NDArray[np.bool_]:
        """True where the token was sampled. Shape: [tokens]."""
        return np.repeat(self.run_generated, self.run_lengths)

    def aligned_log_probs(self) -> NDArray[np.float32]:
        """Behaviour log-probability of every token, 0 where it was inserted. Shape: [tokens]."""
        aligned = np.zeros(len(self.token_ids), dtype=np.float32)
        aligned[self.generated_mask()] = self.log_probs
        return aligned

    @property
    def generated_count(self) -> int:
        return len(self.log_probs)


@dataclass(frozen=True, slots=True)
class TextMessage:
    role: Literal["system", "user", "assistant", "tool"]
    content: str


@dataclass(frozen=True, slots=True)
class TaskPayload:
    task_id: str
    family: str
    task_type: Literal["math", "code"]
    question: str


@dataclass(frozen=True, slots=True)
class DesignPayload:
    text: str
    script: str
    problems: tuple[str, ...]
    """Why the script cannot be run; empty for a valid one."""
    declared_pattern: str


@dataclass(frozen=True, slots=True)
class NodeVisit:
    """A node of the workflow was visited."""

    visit_id: int
    parent_visit_id: int
    node: str
    node_type: str
    result_type: str


@dataclass(frozen=True, slots=True)
class ToolRunRecord:
    """Code that the sandbox ran, attested by its supervisor."""

    tool_run_id: int
    conversation_id: str
    code: str
    output: str
    verdict: str


@dataclass(frozen=True, slots=True)
class TermRecord:
    """One reward term as it was paid."""

    role: Literal["designer", "executor"]
    name: str
    value: float
    weight: float


@dataclass(frozen=True, slots=True)
class ExecutionPayload:
    status: ExecutionStatus
    reason: str
    result: str
    answer: str
    success: bool
    parseable: bool
    """An answer of the right format could be read, right or wrong."""
    executed_pattern: str
    visits: tuple[NodeVisit, ...]
    tool_runs: tuple[ToolRunRecord, ...]
    terms: tuple[TermRecord, ...]
    flags: tuple[str, ...]
    agent_calls: int
    cpu_seconds: float
    wall_seconds: float
    waiting_seconds: float
    profile: str


@dataclass(frozen=True, slots=True)
class ConversationPayload:
    role: Literal["designer", "executor"]
    agent: str
    conversation_id: str
    """As the script named it; empty for the designer's."""
    messages: tuple[TextMessage, ...]
    stop_reasons: tuple[str, ...]
    """Of each generated turn, in order."""


Payload = TaskPayload | DesignPayload | ExecutionPayload | ConversationPayload


@dataclass(frozen=True, slots=True)
class Node:
    """One node. `tokens` is set on conversations of engines with token access."""

    id: str
    parent_id: str
    kind: NodeKind
    attempt: int
    payload: Payload
    tokens: TokenRecord | None = None


@dataclass(frozen=True, slots=True)
class Tree:
    """The nodes of one task's rollout, parents before children."""

    nodes: tuple[Node, ...]
    _children: dict[str, list[Node]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        children: dict[str, list[Node]] = {}
        for node in self.nodes:
            children.setdefault(node.parent_id, []).append(node)
        object.__setattr__(self, "_children", children)

    @property
    def root(self) -> Node:
        return self.nodes[0]

    def of_kind(self, kind: NodeKind) -> Iterator[Node]:
        return (node for node in self.nodes if node.kind is kind)

    def children(self, node_id: str, kind: NodeKind | None = None) -> Sequence[Node]:
        return [node for node in self._children.get(node_id, ()) if kind is None or node.kind is kind]


def node_id(scope: str, step: int, task_id: str, path: str, attempt: int) -> str:
    """Id of a node: 20 hexadecimal digits.

    Args:
        scope: run id or eval job id.
        path: place in the tree, e.g. `design/2/execution/0`.
    """
    key = "\x1f".join((scope, str(step), task_id, path, str(attempt)))
    return blake2b(key.encode(), digest_size=10).hexdigest()


def task_node_id(scope: str, step: int, task_id: str) -> str:
    """Id of the root of a task's tree."""
    return node_id(scope, step, task_id, "task", 0)


def seed_of(seed: int, identifier: str) -> int:
    """A sampling seed below 2^31 for a node, a function of the run's seed and the node's id."""
    return int.from_bytes(blake2b(f"{seed}\x1f{identifier}".encode(), digest_size=4).digest()) >> 1


def generated_tokens(nodes: Iterable[Node]) -> int:
    """Tokens sampled in these nodes."""
    return sum(node.tokens.generated_count for node in nodes if node.tokens is not None)
