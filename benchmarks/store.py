"""What the store costs: sealing a large step, listing many runs, reading events, finding batches. SQLite against PostgreSQL.

    python benchmarks/store.py [--rounds 5] [--executions 10000] [--runs 1000] [--steps 10000]

Both are durable (SQLite synchronous=FULL, PostgreSQL fsync=on) and on one disk; the server is a private one on a Unix socket
(`make postgres`). Rounds are interleaved and the median is printed, with PostgreSQL's time as a ratio of SQLite's.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Table, insert

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "orchestrator" / "harness"))

from storage.postgres import PostgresServer, binaries
from troupe_orchestrator.store import schema
from troupe_orchestrator.store.batches import BatchRecord, batches_after, last_update, sealed_digests
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.executions import TreeFile, find_execution
from troupe_orchestrator.store.run_events import read_events
from troupe_orchestrator.store.runs import RunRecord, RunState, create_run
from troupe_orchestrator.store.steps import StepRecord, StepState, advance_step, begin_step, last_step
from troupe_orchestrator.store.summaries import list_summaries
from troupe_orchestrator.store.trees import write_trees
from troupe_orchestrator.tree import (
    ConversationPayload,
    DesignPayload,
    ExecutionPayload,
    ExecutionStatus,
    Node,
    NodeKind,
    TaskPayload,
    TextMessage,
    TokenRecord,
    Tree,
    node_id,
)

LARGE = "large"
TOKENS = 1000
MANY_RUNS_STEPS = 20
_EXECUTION = ExecutionPayload(
    status=ExecutionStatus.OK, reason="", result="3", answer="3", success=True, parseable=True, executed_pattern="vote",
    visits=(), tool_runs=(), terms=(), flags=(), agent_calls=1, cpu_seconds=0.1, wall_seconds=1.0, waiting_seconds=0.5,
    profile="full",
)  # fmt: skip


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--executions", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=10_000)
    chosen = parser.parse_args()
    found = binaries()
    if found is None:
        sys.exit("PostgreSQL is not installed: make postgres")
    server = PostgresServer(found, durable=True)
    try:
        server.start()
        with tempfile.TemporaryDirectory(prefix="troupe-store-") as folder:
            urls = {"SQLite": f"sqlite:///{folder}/troupe.db", "PostgreSQL": server.new_database()}
            stores = {name: await Database.open(url, 3600.0) for name, url in urls.items()}
            for store in stores.values():
                await fill(store, chosen.runs, chosen.steps)
            await compare(stores, chosen, Path(folder))
            for store in stores.values():
                await store.close()
    finally:
        server.remove()


async def compare(stores: dict[str, Database], chosen: argparse.Namespace, folder: Path) -> None:
    """Measure every operation on both, in turn."""
    file = folder / "trees.parquet"
    begun = time.perf_counter()
    size = write_step(file, chosen.executions)
    seconds = time.perf_counter() - begun
    print(
        f"trees of {chosen.executions:,} executions of {TOKENS} tokens: {seconds:.2f} s, {size / 1e6:.1f} MB, as one file"
    )
    print()
    print(f"{'':58}{'SQLite':>12}{'PostgreSQL':>12}{'ratio':>8}")
    operations: dict[str, Callable[[Database, int], Awaitable[Any]]] = {
        f"seal a step and index {chosen.executions:,} executions": lambda store, turn: seal(store, turn, chosen, file),
        "one transition of a step": lambda store, turn: advance(store, turn),
        "find an execution by a prefix": lambda store, turn: find_execution(store, f"{turn:08x}"),
        f"list 100 of {chosen.runs:,} runs": lambda store, turn: list_summaries(store, 100),
        f"list {chosen.runs:,} runs": lambda store, turn: list_summaries(store, chosen.runs),
        f"read {chosen.steps:,} events": lambda store, turn: read_all_events(store),
        f"newest update of a run of {chosen.steps:,} steps": lambda store, turn: last_update(store, LARGE, "p"),
        "its last 10 batches": lambda store, turn: batches_after(store, LARGE, "p", chosen.steps - 10),
        "digests of all its batches": lambda store, turn: sealed_digests(store, LARGE, "p"),
        "its newest step": lambda store, turn: last_step(store, LARGE),
    }
    for what, operation in operations.items():
        times: dict[str, list[float]] = {name: [] for name in stores}
        for turn in range(1, chosen.rounds + 1):
            for name, store in stores.items():
                begun = time.perf_counter()
                await operation(store, turn)
                times[name].append(time.perf_counter() - begun)
        sqlite, postgresql = (statistics.median(times[name]) for name in ("SQLite", "PostgreSQL"))
        print(f"{what:58}{1e3 * sqlite:9.1f} ms{1e3 * postgresql:9.1f} ms{postgresql / sqlite:8.2f}", flush=True)


async def fill(store: Database, many: int, steps: int) -> None:
    """A run of so many committed steps, and so many runs of a few."""
    counts = {LARGE: steps} | {f"run-{number:04d}": MANY_RUNS_STEPS for number in range(many - 1)}
    common = {"state": "succeeded", "reason": "", "config": "c" * 3000, "provenance": {}, "total_steps": 10}
    await rows(
        store,
        schema.runs,
        [
            common | {"run_id": run_id, "folder": "/data", "created_at": float(number), "ended_at": None}
            for number, run_id in enumerate(counts)
        ],
    )
    numbered = [(run_id, step) for run_id, count in counts.items() for step in range(1, count + 1)]
    metrics = {f"metric_{number}": number / 7 for number in range(40)}
    await rows(
        store,
        schema.steps,
        [
            {"run_id": run_id, "step": step, "state": "committed", "task_ids": [f"task-{n}" for n in range(8)]}
            | {"queue": {"seed": 0, "epoch": 1, "position": 8}, "versions": {"p": f"a:{step}"}, "metrics": metrics}
            for run_id, step in numbered
        ],
    )
    await rows(
        store,
        schema.batches,
        [
            {"run_id": run_id, "policy_id": "p", "update_number": step, "step": step, "digest": f"{step:064x}"}
            | {"file": f"/data/runs/{run_id}/steps/{step:06d}/batch-p-1.parquet", "bytes": 1000, "sequences": 100}
            | {"optimization": {"learningRate": 1e-6, "miniBatches": 1}, "collected": False}
            for run_id, step in numbered
        ],
    )
    await rows(
        store,
        schema.tree_files,
        [
            {"scope": run_id, "step": step, "path": f"/data/runs/{run_id}/steps/{step:06d}/trees-1.parquet"}
            | {"bytes": 1000, "collected": False}
            for run_id, step in numbered
        ],
    )
    await rows(
        store,
        schema.events,
        [{"run_id": LARGE, "event_id": step, "payload": b"e" * 1500} for step in range(1, steps + 1)],
    )


async def rows(store: Database, table: Table, values: Sequence[dict[str, Any]]) -> None:
    async with store.writing() as connection:
        await connection.execute(insert(table), list(values))


async def seal(store: Database, turn: int, chosen: argparse.Namespace, file: Path) -> None:
    """The whole transition: batch, trees and their executions, in one transaction."""
    run_id = f"sealed-{turn}"
    await create_run(store, RunRecord(run_id, RunState.RUNNING, "", "", 1, "/data", 0.0, None), {})
    batch = BatchRecord("p", 1, "00" * 32, "/data/batch.parquet", 100, {})
    record = StepRecord(run_id, 1, StepState.ROLLING, ("t",), {}, {}, (batch,))
    await begin_step(store, record)
    trees = TreeFile(str(file), [f"{turn:08x}{number:012x}" for number in range(chosen.executions)], "00" * 32)
    await advance_step(store, record, StepState.SEALED, trees=trees)


async def advance(store: Database, turn: int) -> None:
    record = StepRecord(f"sealed-{turn}", 1, StepState.SEALED, ("t",), {})
    await advance_step(store, replace(record, metrics={"success": 0.5}), StepState.TRAINED)


async def read_all_events(store: Database) -> None:
    after = 0
    while page := await read_events(store, LARGE, after):
        after = page[-1][0]


def write_step(file: Path, executions: int) -> int:
    """Trees of so many executions, four designs a task and four executions a design."""
    generator = np.random.default_rng(0)
    write_trees(file, [_tree(generator, task) for task in range(-(-executions // 16))])
    return file.stat().st_size


def _tree(generator: np.random.Generator, task: int) -> Tree:
    root = Node(_id(task, ""), "", NodeKind.TASK, 0, TaskPayload(f"task-{task}", "calc", "math", "What is 1 + 2?"))
    nodes = [root]
    for number in range(4):
        design = Node(
            _id(task, f"d{number}"), root.id, NodeKind.DESIGN, 0, DesignPayload("text", "script" * 100, (), "vote")
        )
        nodes.append(design)
        for place in range(4):
            execution = Node(
                _id(task, f"d{number}/e{place}"),
                design.id,
                NodeKind.EXECUTION,
                0,
                _EXECUTION,
            )
            nodes += [execution, _conversation(generator, execution.id)]
    return Tree(tuple(nodes))


def _conversation(generator: np.random.Generator, parent: str) -> Node:
    half = TOKENS // 2
    tokens = TokenRecord(
        token_ids=generator.integers(0, 150_000, TOKENS, dtype=np.int32),
        run_generated=np.array([False, True]),
        run_lengths=np.array([half, half], dtype=np.int32),
        run_versions=("", "a:1"),
        log_probs=generator.random(half, dtype=np.float32),
    )
    messages = (TextMessage("user", "What is 1 + 2?"), TextMessage("assistant", "The sum is 3. " * 100))
    payload = ConversationPayload("executor", "solver", "c", messages, ("end",))
    return Node(f"{parent}c", parent, NodeKind.CONVERSATION, 0, payload, tokens=tokens)


def _id(task: int, path: str) -> str:
    return node_id("run", 1, f"task-{task}", path, 0)


if __name__ == "__main__":
    asyncio.run(main())
