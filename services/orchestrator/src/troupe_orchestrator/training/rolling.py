"""A step until it is sealed: tasks are drawn, rolled out, journalled as they finish, credited and written down.

Everything before the seal may be done again after a crash, and is, but for the groups in the journal. The seal is one
transaction: trees, batches, drops and the events that tell of them are on record together, or none is.
"""

import asyncio
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog
from google.protobuf.message import Message
from troupe.v1 import training_pb2

from troupe_orchestrator.datasets.task import Task
from troupe_orchestrator.rollout.faults import FaultTally
from troupe_orchestrator.rollout.nursery import Nursery
from troupe_orchestrator.rollout.served import while_served
from troupe_orchestrator.rollout.task import Services, TaskDroppedError, roll_task
from troupe_orchestrator.rollout.timeline import SpanKind, Timeline, write_timeline
from troupe_orchestrator.run_config import RunConfig
from troupe_orchestrator.stages import StepPlan
from troupe_orchestrator.store.batches import BatchRecord, last_update, updated_policies
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.drops import DropRecord, list_drops, quarantined_tasks
from troupe_orchestrator.store.executions import TreeFile
from troupe_orchestrator.store.journal import JournalledGroup, forget_groups, journal_group, journalled_groups
from troupe_orchestrator.store.steps import StepRecord, StepState, advance_step, begin_step
from troupe_orchestrator.store.trees import TreesDamagedError, execution_ids, read_trees, write_trees
from troupe_orchestrator.training.assembly import assemble_batches
from troupe_orchestrator.training.batch import write_batch
from troupe_orchestrator.training.conditions import finite
from troupe_orchestrator.training.drift import held_sequences, idle_role
from troupe_orchestrator.training.drop_rates import drop_rates
from troupe_orchestrator.training.endings import EverythingDroppedError
from troupe_orchestrator.training.events import EventLog
from troupe_orchestrator.training.metrics import credit_metrics, rollout_metrics
from troupe_orchestrator.training.progress import RolloutProgress
from troupe_orchestrator.training.queue import TaskQueue, draw, postpone
from troupe_orchestrator.training.record import Fork
from troupe_orchestrator.training.requests import optimization, rollout_plan
from troupe_orchestrator.training.ungradable import ungradable_answers, ungradable_in
from troupe_orchestrator.tree import Tree, generated_tokens

logger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class StepFolders:
    """Where a run keeps what belongs to its steps."""

    run: Path

    def of(self, step: int) -> Path:
        return self.run / "steps" / f"{step:06d}"

    def held(self, step: int, token: int) -> Path:
        """Where sequences of a stage's first step are put by which the drift of the other role is measured.

        Args:
            token: fencing token of who writes them.
        """
        return self.of(step) / f"held-{token}.parquet"

    def newest_held(self, step: int) -> Path | None:
        """Those of the highest token: nobody rolls a step out after it was sealed, so they are of who sealed it."""
        found = self.of(step).glob("held-*.parquet")
        return max(found, key=lambda file: int(file.stem.rpartition("-")[2]), default=None)


@dataclass(frozen=True, slots=True)
class Rolling:
    """The first half of one run's steps.

    Args:
        policy_of_role: role to the id of the policy that plays it.
        fork: where the run left its parent, if it is a fork.
    """

    run_id: str
    config: RunConfig
    tasks: Mapping[str, Task]
    folders: StepFolders
    database: Database
    events: EventLog
    services: Services
    policy_of_role: Mapping[str, str]
    fork: Fork | None = None

    async def begin(self, number: int, queue: TaskQueue, watch: dict[str, Any]) -> None:
        """Draw the tasks of a step.

        Args:
            watch: what the run's conditions know.

        Raises:
            NoTasksError: nothing is left to draw.
        """
        quarantined = await quarantined_tasks(self.database, self.run_id)
        # Off the loop: an epoch's order is a hash of every task.
        count = self.config.rollout.tasks_per_step
        drawn, queue = await asyncio.to_thread(draw, queue, count, tuple(self.tasks), quarantined)
        await begin_step(
            self.database,
            StepRecord(
                run_id=self.run_id,
                step=number,
                state=StepState.ROLLING,
                task_ids=tuple(drawn),
                queue=queue.to_json(),
                watch=watch,
            ),
        )

    async def roll_and_seal(self, record: StepRecord, plan: StepPlan, versions: Mapping[str, str]) -> None:
        """Roll a step's tasks out and seal it.

        Args:
            versions: policy id to what its engines serve.

        Raises:
            EverythingDroppedError: no task could be rolled out.
            NobodyCanServeError: the weights that this began with are gone; with others it begins anew.
        """
        begun = time.perf_counter()
        journalled = await self._journalled(record, versions)
        trees, dropped, timeline, faults = await self._roll(record, plan, versions, journalled)
        rolled = time.perf_counter()
        if not trees:
            raise EverythingDroppedError(
                f"step {record.step}: all {len(dropped)} tasks were dropped, the last because of {dropped[-1].fault}"
            )
        folder = self.folders.of(record.step)
        spans = self._file(folder, "timeline", "json")
        await asyncio.to_thread(write_timeline, spans, timeline)
        listed, batches = await self._seal_files(folder, trees, plan)
        listed = replace(listed, beside=str(spans))
        metrics = await asyncio.to_thread(lambda: rollout_metrics(trees) | credit_metrics(trees, self.config, plan))
        # Only of what these seconds made: groups that an earlier loop finished cost none of them.
        made = metrics["generated_tokens"] - sum(generated_tokens(tree.nodes) for tree in journalled.values())
        metrics |= {
            "tasks_dropped": float(len(dropped)),
            "tasks_journalled": float(len(journalled)),
            "seconds_rollout": rolled - begun,
            "seconds_seal": time.perf_counter() - rolled,
            **{f"seconds_{kind}_sum": timeline.seconds(kind) for kind in SpanKind},
            "tokens_per_second": made / (rolled - begun),
            **faults.metrics(),
            **drop_rates(
                {task_id: self.tasks[task_id].question for task_id in record.task_ids},
                {drop.task_id for drop in dropped},
            ),
        }
        # Counted only where others of the step came through: an outage must not quarantine what it hits.
        drops = await self._count(dropped)
        queue = postpone(TaskQueue.from_json(record.queue), [drop.task_id for drop in dropped])
        sealed = replace(
            record, queue=queue.to_json(), versions=dict(versions), batches=tuple(batches), metrics=finite(metrics)
        )
        found = await asyncio.to_thread(ungradable_in, trees)
        ungradable = ungradable_answers(found, int(metrics["executions"]))
        async with self.events.storing(record.step, *map(_condition, drops), *ungradable) as events:
            await advance_step(self.database, sealed, StepState.SEALED, events, listed, drops)
        # The journal has served: its trees are in the step's file.
        await asyncio.to_thread(shutil.rmtree, folder / "groups", ignore_errors=True)

    async def _roll(
        self, record: StepRecord, plan: StepPlan, versions: Mapping[str, str], journalled: Mapping[str, Tree]
    ) -> tuple[list[Tree], list[TaskDroppedError], Timeline, FaultTally]:
        """The step's trees in the order of its tasks, without those that were dropped."""
        trees = dict(journalled)
        progress = RolloutProgress(self.events, plan, len(record.task_ids), len(trees))
        timeline = Timeline()
        dropped: list[TaskDroppedError] = []
        of_role = {role: versions[policy_id] for role, policy_id in self.policy_of_role.items()}
        rollout = rollout_plan(self.run_id, self.config, plan, of_role)

        async def roll(task_id: str) -> None:
            try:
                tree = await roll_task(self.tasks[task_id], rollout, self.services, progress, timeline)
            except TaskDroppedError as drop:
                dropped.append(drop)
                return
            trees[task_id] = tree
            await self._journal(record.step, task_id, tree, versions)

        serving = while_served(self.services.executors, self.services.designers)
        async with progress.reporting(), serving, Nursery() as rolling:
            for task_id in record.task_ids:
                if task_id not in trees:
                    rolling.create_task(roll(task_id))
        return [trees[task_id] for task_id in record.task_ids if task_id in trees], dropped, timeline, progress.faults

    async def _journalled(self, record: StepRecord, versions: Mapping[str, str]) -> dict[str, Tree]:
        """Groups that an earlier loop finished, where they were rolled out by the current weights and are whole."""
        journal = await journalled_groups(self.database, self.run_id, record.step)
        if all(group.versions == versions for group in journal.values()):
            try:
                return {task_id: await asyncio.to_thread(_tree, group) for task_id, group in journal.items()}
            except (TreesDamagedError, FileNotFoundError) as error:
                logger.warning("journal_damaged", file=str(error), remedy="the step's tasks are rolled out again")
        await forget_groups(self.database, self.run_id, record.step)
        return {}

    async def _journal(self, step: int, task_id: str, tree: Tree, versions: Mapping[str, str]) -> None:
        file = self._file(self.folders.of(step) / "groups", tree.root.id)
        digest = await asyncio.to_thread(write_trees, file, [tree])
        group = JournalledGroup(str(file), dict(versions), digest)
        await journal_group(self.database, self.run_id, step, task_id, group)

    def _file(self, folder: Path, name: str, kind: str = "parquet") -> Path:
        """A file that only this orchestrator writes: one that lost the store meanwhile has another token."""
        return folder / f"{name}-{self.database.fence.token}.{kind}"

    async def _count(self, dropped: Sequence[TaskDroppedError]) -> list[DropRecord]:
        """The drops of a step, counted on."""
        known = {drop.task_id: drop.count for drop in await list_drops(self.database, self.run_id)}
        limit = self.config.rollout.quarantine_after
        return [
            DropRecord(drop.task_id, count, count >= limit, str(drop.fault))
            for drop in dropped
            for count in [known.get(drop.task_id, 0) + 1]
        ]

    async def _seal_files(
        self, folder: Path, trees: Sequence[Tree], plan: StepPlan
    ) -> tuple[TreeFile, list[BatchRecord]]:
        """Write trees and batches; from here on the step's training is determined."""
        policies = set(self.policy_of_role.values())
        updates = {policy: await last_update(self.database, self.run_id, policy) + 1 for policy in policies}
        resets = await self._policies_to_reset(plan)
        return await asyncio.to_thread(self._write, folder, trees, plan, updates, resets)

    def _write(
        self, folder: Path, trees: Sequence[Tree], plan: StepPlan, updates: Mapping[str, int], resets: Collection[str]
    ) -> tuple[TreeFile, list[BatchRecord]]:
        file = self._file(folder, "trees")
        listed = TreeFile(str(file), execution_ids(trees), write_trees(file, trees))
        idle = idle_role(plan.trains, self.policy_of_role)
        if idle is not None and plan.step_in_stage == 1:
            write_batch(self.folders.held(plan.step, self.database.fence.token), held_sequences(trees, idle))
        records = []
        for batch in assemble_batches(trees, plan, self.config, self.policy_of_role):
            file = self._file(folder, f"batch-{batch.policy_id}")
            write_batch(file, batch.sequences)
            records.append(
                BatchRecord(
                    policy_id=batch.policy_id,
                    update=updates[batch.policy_id],
                    digest=batch.digest.hex(),
                    file=str(file),
                    sequences=len(batch.sequences),
                    optimization=optimization(self.config, plan, batch.policy_id in resets),
                )
            )
        return listed, records

    async def _policies_to_reset(self, plan: StepPlan) -> set[str]:
        """Policies whose optimizer forgets its moments before their next update: the first of a stage that asks for it."""
        if not plan.resets_optimizer:
            return set()
        first = plan.step - plan.step_in_stage + 1
        updated = await updated_policies(self.database, self.run_id, first, plan.step - 1)
        if self.fork is not None and first <= self.fork.step:
            updated |= set(self.fork.updated)
        return set(self.policy_of_role.values()) - updated


def _tree(group: JournalledGroup) -> Tree:
    (tree,) = read_trees(Path(group.file), group.digest)
    return tree


def _condition(drop: DropRecord) -> Message:
    return training_pb2.Condition(
        reason="TaskQuarantined" if drop.quarantined else "TaskDropped",
        message=f"task {drop.task_id}: {drop.reason}",
        remedy="it is no longer drawn" if drop.quarantined else "it is drawn again at the end of the epoch",
    )
