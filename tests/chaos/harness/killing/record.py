"""What the store says of one run, read from outside while the orchestrator writes it, or is stopped or dead."""

import json
import os
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from troupe_orchestrator.store.batches import BatchRecord
from troupe_orchestrator.store.trees import read_trees
from troupe_orchestrator.training.queue import TaskQueue
from troupe_orchestrator.tree import TaskPayload


@dataclass(frozen=True)
class Step:
    """The newest step."""

    number: int
    state: str
    groups: int
    """Task groups that are journalled."""
    tasks: int


NO_STEP = Step(0, "committed", 0, 0)


class Store(Protocol):
    """Where the orchestrator keeps its records: tables, and files that they name."""

    def rows(self, query: str, run_id: str) -> list[tuple[Any, ...]]:
        """The rows of a query with one `?`; JSON as text. None while there are no tables yet."""

    def keep(self, file: str, kept: Path) -> None:
        """Puts a copy of a file where no retention clears it."""


@dataclass(frozen=True)
class LocalStore:
    """SQLite and files on this machine."""

    data: Path

    def rows(self, query: str, run_id: str) -> list[tuple[Any, ...]]:
        file = self.data / "troupe.db"
        if not file.exists():
            return []
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=10)) as connection:
            return connection.execute(query, (run_id,)).fetchall()

    def keep(self, file: str, kept: Path) -> None:
        os.link(file, kept)


class Record:
    """One run in a store. Keeps every sealed batch, since the run collects those that no replay needs."""

    def __init__(self, store: Store, run_id: str, kept: Path) -> None:
        self._store = store
        self._run_id = run_id
        self._kept = kept
        self._batches: list[BatchRecord] = []
        self._trained: dict[int, list[str]] = {}
        kept.mkdir(parents=True, exist_ok=True)

    def run_state(self) -> tuple[str, str]:
        """State and reason; "" before the run is there."""
        rows = self._rows("select state, reason from runs where run_id = ?")
        return (str(rows[0][0]), str(rows[0][1])) if rows else ("", "")

    def newest(self) -> Step:
        rows = self._rows(
            "select step, state, task_ids, (select count(*) from groups where groups.run_id = steps.run_id and "
            "groups.step = steps.step) from steps where run_id = ? order by step desc limit 1"
        )
        if not rows:
            return NO_STEP
        number, state, task_ids, groups = rows[0]
        return Step(number, state, groups, len(json.loads(task_ids)))

    def steps(self) -> list[tuple[int, str]]:
        """(step, state) of all."""
        return [(row[0], row[1]) for row in self._rows("select step, state from steps where run_id = ? order by step")]

    def committed(self) -> int:
        return max((step for step, state in self.steps() if state == "committed"), default=0)

    def sealed(self) -> list[str]:
        """Digests of the policy's updates, from the first on."""
        return [row[0] for row in self._rows("select digest from batches where run_id = ? order by update_number")]

    def checkpoints(self) -> list[int]:
        """The steps after which one was saved that is kept."""
        return [row[0] for row in self._rows("select step from checkpoints where run_id = ? order by step")]

    def updates_of(self, step: int) -> list[int]:
        """Numbers of the updates that a step sealed."""
        rows = self._rows("select update_number, step from batches where run_id = ?")
        return [update for update, of in rows if of == step]

    def updates_committed(self) -> int:
        """How many updates are of committed steps."""
        committed = self.committed()
        rows = self._rows("select update_number, step from batches where run_id = ?")
        return sum(step <= committed for _, step in rows)

    def keep_batches(self) -> list[BatchRecord]:
        """All sealed batches, their files in a folder that no retention clears."""
        rows = self._rows(
            "select policy_id, update_number, digest, file, sequences, optimization from batches where run_id = ? "
            f"and update_number > {len(self._batches)} order by update_number"
        )
        for policy_id, update, digest, file, sequences, optimization in rows:
            kept = self._kept / f"{update:06d}-{digest}.parquet"
            self._store.keep(file, kept)
            self._batches.append(BatchRecord(policy_id, update, digest, str(kept), sequences, json.loads(optimization)))
        return self._batches

    def trained_tasks(self, through: int) -> Counter[str]:
        """How often each task is in the trees of the steps up to this one, all of which are committed."""
        rows = self._rows("select step, path from tree_files where scope = ? order by step")
        for step, path in rows:
            if step <= through and step not in self._trained:
                kept = self._kept / f"{step:06d}{''.join(Path(path).suffixes)}"
                self._store.keep(path, kept)
                roots = [tree.root.payload for tree in read_trees(kept)]
                self._trained[step] = [root.task_id for root in roots if isinstance(root, TaskPayload)]
        return Counter(task for step, tasks in self._trained.items() if step <= through for task in tasks)

    def drawn(self) -> list[tuple[list[str], TaskQueue]]:
        """For each committed step its tasks, and the queue after it."""
        rows = self._rows("select task_ids, queue from steps where run_id = ? and state = 'committed' order by step")
        return [(json.loads(tasks), TaskQueue.from_json(json.loads(queue))) for tasks, queue in rows]

    def quarantined(self) -> set[str]:
        return {row[0] for row in self._rows("select task_id from drops where run_id = ? and quarantined")}

    def dropped(self) -> list[tuple[str, str]]:
        """(task, reason) of each task group that was given up at least once."""
        return [(row[0], row[1]) for row in self._rows("select task_id, reason from drops where run_id = ?")]

    def probe_errors(self) -> list[float]:
        """Mean error of the probe of each committed step's load."""
        return [error for error in self._probes().values() if error is not None]

    def unprobed(self) -> list[int]:
        """Committed steps with an update that tell of no probe. Those are left out in which an orchestrator took over from
        another, after their seal and before the next: the first one may have loaded and probed, and told nobody.
        """
        sealed = self._rows("select step, file from batches where run_id = ? order by update_number")
        # The token of whoever sealed a step is in the names of its files.
        drivers = {step: Path(file).stem.rpartition("-")[2] for step, file in sealed}
        now = self._rows("select token from lease where exists (select 1 from runs where run_id = ?)")
        tokens = [*drivers.values(), *(str(token) for (token,) in now)]
        driven_by_one = {step for step, this, after in zip(drivers, tokens, tokens[1:], strict=False) if this == after}
        return [step for step, error in self._probes().items() if error is None and step in driven_by_one]

    def _probes(self) -> dict[int, float | None]:
        """By committed step."""
        rows = self._rows("select step, metrics from steps where run_id = ? and state = 'committed' order by step")
        return {step: json.loads(metrics).get("probe_mean_error") for step, metrics in rows}

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        return self._store.rows(query, self._run_id)
