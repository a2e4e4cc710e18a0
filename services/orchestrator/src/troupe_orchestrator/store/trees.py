"""Rollout trees as Parquet: one row per node, the payload as JSON, tokens as typed lists.

Whoever lists a file keeps the SHA-256 of its bytes, and has it checked when the file is read back.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from troupe_orchestrator.store.files import write_table
from troupe_orchestrator.tree import (
    SCHEMA_VERSION,
    ConversationPayload,
    DesignPayload,
    ExecutionPayload,
    Node,
    NodeKind,
    Payload,
    TaskPayload,
    TokenRecord,
    Tree,
)

_PAYLOADS: dict[NodeKind, TypeAdapter[Payload]] = {
    NodeKind.TASK: TypeAdapter(TaskPayload),
    NodeKind.DESIGN: TypeAdapter(DesignPayload),
    NodeKind.EXECUTION: TypeAdapter(ExecutionPayload),
    NodeKind.CONVERSATION: TypeAdapter(ConversationPayload),
}

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("parent_id", pa.string()),
        ("kind", pa.string()),
        ("attempt", pa.int32()),
        ("payload", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("run_generated", pa.list_(pa.bool_())),
        ("run_lengths", pa.list_(pa.int32())),
        ("run_versions", pa.list_(pa.string())),
        ("log_probs", pa.list_(pa.float32())),
    ],
    metadata={"troupe.schema": str(SCHEMA_VERSION)},
)


class SchemaMismatchError(ValueError):
    """A file was written by another version of the tree's schema."""


class TreesDamagedError(ValueError):
    """A file is not the one that was written."""


def write_trees(path: Path, trees: Iterable[Tree]) -> str:
    """Write all nodes of `trees` to one file, durably; the file's SHA-256, hex."""
    nodes = [node for tree in trees for node in tree.nodes]
    columns = [
        [node.id for node in nodes],
        [node.parent_id for node in nodes],
        [node.kind.value for node in nodes],
        [node.attempt for node in nodes],
        [_PAYLOADS[node.kind].dump_json(node.payload).decode() for node in nodes],
        [None if node.tokens is None else node.tokens.token_ids for node in nodes],
        [None if node.tokens is None else node.tokens.run_generated for node in nodes],
        [None if node.tokens is None else node.tokens.run_lengths for node in nodes],
        [None if node.tokens is None else list(node.tokens.run_versions) for node in nodes],
        [None if node.tokens is None else node.tokens.log_probs for node in nodes],
    ]
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    write_table(path, pa.Table.from_arrays(arrays, schema=SCHEMA))
    return _digest(path)


def read_trees(path: Path, digest: str = "") -> list[Tree]:
    """Read the trees of one file.

    Args:
        digest: what `write_trees` gave; empty where nobody kept it.

    Raises:
        TreesDamagedError: the file has another digest.
        SchemaMismatchError: written under another schema version.
        FileNotFoundError: there is no such file.
    """
    table = _table(path, digest)
    groups: list[list[Node]] = []
    for row in table.to_pylist():
        node = _node(row)
        if node.kind is NodeKind.TASK:
            groups.append([])
        groups[-1].append(node)
    return [Tree(tuple(nodes)) for nodes in groups]


def read_designs(path: Path, digest: str = "") -> list[tuple[str, DesignPayload]]:
    """The designs of one file, each with the id of its task's node. Tokens are not parsed.

    Args:
        digest: what `write_trees` gave; empty where nobody kept it.

    Raises:
        TreesDamagedError: the file has another digest.
        SchemaMismatchError: written under another schema version.
        FileNotFoundError: there is no such file.
    """
    rows = _table(path, digest, ["parent_id", "kind", "payload"]).to_pylist()
    designs = TypeAdapter(DesignPayload)
    return [(row["parent_id"], designs.validate_json(row["payload"])) for row in rows if row["kind"] == NodeKind.DESIGN]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _table(path: Path, digest: str, columns: list[str] | None = None) -> pa.Table:
    if digest and _digest(path) != digest:
        raise TreesDamagedError(f"{path} is not what was written (SHA-256)")
    table = pq.ParquetFile(path).read(columns)
    found = (table.schema.metadata or {}).get(b"troupe.schema", b"none").decode()
    if found != str(SCHEMA_VERSION):
        raise SchemaMismatchError(f"{path}: schema version {found}, this release reads {SCHEMA_VERSION}")
    return table


def _node(row: dict[str, object]) -> Node:
    kind = NodeKind(str(row["kind"]))
    tokens = None
    if row["token_ids"] is not None:
        tokens = TokenRecord(
            token_ids=np.asarray(row["token_ids"], dtype=np.int32),
            run_generated=np.asarray(row["run_generated"], dtype=np.bool_),
            run_lengths=np.asarray(row["run_lengths"], dtype=np.int32),
            run_versions=tuple(row["run_versions"]),  # type: ignore[arg-type]
            log_probs=np.asarray(row["log_probs"], dtype=np.float32),
        )
    return Node(
        id=str(row["id"]),
        parent_id=str(row["parent_id"]),
        kind=kind,
        attempt=int(row["attempt"]),  # type: ignore[call-overload]
        payload=_PAYLOADS[kind].validate_json(str(row["payload"])),
        tokens=tokens,
    )


def execution_ids(trees: Sequence[Tree]) -> list[str]:
    """Ids of all executions in these trees."""
    return [node.id for tree in trees for node in tree.of_kind(NodeKind.EXECUTION)]
