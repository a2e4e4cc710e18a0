"""The loop of one run: steps through ROLLING, SEALED, TRAINED, SYNCED, COMMITTED, from wherever the store says it is.

The sealed batch is the log. Whatever dies, the loop that starts next reads the store, brings the learners to the last sealed
update by replaying sealed batches, and goes on; no batch is trained twice and no rollout of a sealed step is repeated.
"""

import asyncio
import shutil
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import structlog
from google.protobuf.json_format import MessageToDict
from troupe.v1 import common_pb2, learner_pb2, training_pb2

from troupe_orchestrator.datasets.task import Task
from troupe_orchestrator.rollout.observer import Silent
from troupe_orchestrator.rollout.task import RolloutPlan, Services, TaskDroppedError, roll_task
from troupe_orchestrator.rollout.timeline import SpanKind, Timeline, write_timeline
from troupe_orchestrator.run_config import RunConfig
from troupe_orchestrator.stages import StepPlan
from troupe_orchestrator.store import runs as store
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.executions import TreeFile
from troupe_orchestrator.store.runs import BatchRecord, StepRecord, StepState
from troupe_orchestrator.store.trees import execution_ids, read_trees, write_trees
from troupe_orchestrator.training.assembly import assemble_batches
from troupe_orchestrator.training.batch import TrainingSequence, read_batch, write_batch
from troupe_orchestrator.training.conditions import ConditionWatch, StepMetrics, Violation, finite
from troupe_orchestrator.training.drift import drift, held_sequences, idle_role
from troupe_orchestrator.training.events import EventLog
from troupe_orchestrator.training.fork import plan_of, prepare_base
from troupe_orchestrator.training.learning import Learning
from troupe_orchestrator.training.metrics import credit_metrics, rollout_metrics
from troupe_orchestrator.training.policies import Policy, parse_version, version_text
from troupe_orchestrator.training.queue import TaskQueue, draw, postpone
from troupe_orchestrator.training.record import Fork
from troupe_orchestrator.training.weights import SyncReport, sync_weights
from troupe_orchestrator.tree import Tree, generated_tokens

logger = structlog.get_logger()

_PROBES = 4
_HELD = "held.parquet"
"""Beside the trees of a stage's first step: sequences by which the drift of the other role is measured."""
_FIXED_PROBE = list(range(1, 17))
"""Token ids that every vocabulary has: tells a load that failed where no batch is at hand."""


class EverythingDroppedError(RuntimeError):
    """No task of a step could be rolled out: something of ours is down."""


class ConditionsViolatedError(RuntimeError):
    """Conditions of the run's config hold after its newest step."""

    def __init__(self, step: int, violations: Sequence[Violation]) -> None:
        super().__init__(
            f"after step {step} "
            + "; ".join(f"{each.reason}: {each.message}. Remedy: {each.remedy}" for each in violations)
        )


class RunLoop:
    """One run in progress. `run` returns when the run is done or `stop` was asked for, also before it began."""

    def __init__(
        self,
        run_id: str,
        config: RunConfig,
        tasks: Sequence[Task],
        folder: Path,
        database: Database,
        events: EventLog,
        services: Services,
        policies: Sequence[Policy],
        boundary: asyncio.Lock,
        fork: Fork | None = None,
        first_queue: TaskQueue | None = None,
        acknowledged: bool = False,
    ) -> None:
        """One run.

        Args:
            fork: where the run left its parent, if it is a fork.
            first_queue: from which the first step draws; a fresh one unless given.
            acknowledged: the run was resumed by somebody who knows which conditions hold after its newest step.
        """
        self._run_id = run_id
        self._config = config
        self._fork = fork
        self._first_queue = first_queue or TaskQueue(config.seed)
        self._acknowledged = acknowledged
        self._watch = ConditionWatch(config.conditions)
        self._violated: list[Violation] = []
        self._tasks = {task.task_id: task for task in tasks}
        self._folder = folder
        self._database = database
        self._events = events
        self._services = services
        self._policies = {policy.policy_id: policy for policy in policies}
        self._policy_of_role = {role: policy.policy_id for policy in policies for role in policy.roles}
        self._boundary = boundary
        self._learning = Learning(database, run_id)
        self._stop = asyncio.Event()
        self._probes: dict[str, list[list[int]]] = {policy_id: [_FIXED_PROBE] for policy_id in self._policies}

    def stop(self) -> None:
        """Ask the loop to return at the next step boundary."""
        self._stop.set()

    async def run(self) -> bool:
        """Run to the end of the plan; false when `stop` came first.

        Raises:
            ConditionsViolatedError: conditions of the config hold after a committed step.
        """
        async with self._boundary:
            await self._recover()
        while not self._stop.is_set():
            newest = await store.last_step(self._database, self._run_id)
            done = newest.step if newest is not None and newest.state is StepState.COMMITTED else None
            if done == self._config.steps:
                await self._checkpoint(done)
                return True
            if done is not None and self._violated and not self._acknowledged:
                raise ConditionsViolatedError(done, self._violated)
            self._acknowledged = False
            # An eval job that waits for the policies gets them between steps.
            async with self._boundary:
                await self._step(newest)
            await asyncio.sleep(0)
        return False

    async def _recover(self) -> None:
        """Bring learners and engines to what is sealed and trained, and the conditions to what is committed."""
        if self._fork is not None:
            policies = list(self._policies.values())
            bases = await prepare_base(self._database, self._run_id, self._folder, self._fork, policies)
            self._learning = Learning(self._database, self._run_id, bases)
        updates = dict.fromkeys(self._policies, 0)
        for record in await store.list_steps(self._database, self._run_id):
            if record.state is StepState.COMMITTED:
                self._violated = self._watch.observe(self._measured(record, self._plan(record.step)))
            if record.state in (StepState.ROLLING, StepState.SEALED):
                continue
            for batch in record.batches:
                updates[batch.policy_id] = batch.update
        for policy_id, update in updates.items():
            await self._learning.bring_to(self._policies[policy_id], update)
            await self._sync(self._policies[policy_id])

    async def _step(self, newest: StepRecord | None) -> None:
        """Take one step from where it stands to COMMITTED."""
        record = newest
        if record is None or record.state is StepState.COMMITTED:
            record = await self._begin(record)
        plan = self._plan(record.step)
        with structlog.contextvars.bound_contextvars(run=self._run_id, step=record.step):
            if record.state is StepState.ROLLING:
                record = await self._roll_and_seal(record, plan)
            if record.state is StepState.SEALED:
                record = await self._train(record, plan)
            if record.state is StepState.TRAINED:
                record = await self._synchronise(record)
            await self._commit(record, plan)

    async def _begin(self, before: StepRecord | None) -> StepRecord:
        queue = self._first_queue if before is None else TaskQueue.from_json(before.queue)
        start = 0 if self._fork is None else self._fork.step
        quarantined = await store.quarantined_tasks(self._database, self._run_id)
        drawn, queue = draw(queue, self._config.rollout.tasks_per_step, tuple(self._tasks), quarantined)
        record = StepRecord(
            run_id=self._run_id,
            step=(start if before is None else before.step) + 1,
            state=StepState.ROLLING,
            task_ids=tuple(drawn),
            queue=queue.to_json(),
            versions=await self._versions(),
        )
        await store.begin_step(self._database, record)
        return record

    async def _roll_and_seal(self, record: StepRecord, plan: StepPlan) -> StepRecord:
        begun = time.perf_counter()
        versions = await self._versions()
        journalled = await self._journalled(record, versions)
        trees, dropped, timeline = await self._roll(record, plan, versions, journalled)
        rolled = time.perf_counter()
        if not trees:
            raise EverythingDroppedError(
                f"step {record.step}: all {len(dropped)} tasks were dropped, the last because of {dropped[-1].fault}"
            )
        for drop in dropped:
            # Counted only where the others of the step came through: an outage must not quarantine what it hits.
            await self._drop(record.step, drop)
        folder = self._step_folder(record.step)
        updates = {policy_id: await self._learning.last_update(policy_id) + 1 for policy_id in self._policies}
        resets = await self._policies_to_reset(plan)
        await asyncio.to_thread(write_timeline, folder / "timeline.json", timeline)
        batches = await asyncio.to_thread(self._seal_files, folder, trees, plan, updates, resets)
        queue = postpone(TaskQueue.from_json(record.queue), [drop.task_id for drop in dropped])
        metrics = await asyncio.to_thread(lambda: rollout_metrics(trees) | credit_metrics(trees, self._config, plan))
        seconds = rolled - begun
        metrics |= {
            "tasks_dropped": float(len(dropped)),
            "seconds_rollout": seconds,
            "seconds_seal": time.perf_counter() - rolled,
            **{f"seconds_{kind}_sum": timeline.seconds(kind) for kind in SpanKind},
            # Only of what these seconds made: groups that an earlier loop finished cost none of them.
            "tasks_journalled": float(len(journalled)),
            "tokens_per_second": (metrics["generated_tokens"] - _tokens_of(journalled.values())) / seconds,
        }
        sealed = replace(record, queue=queue.to_json(), versions=versions, batches=tuple(batches), metrics=metrics)
        listed = TreeFile(str(folder / "trees.parquet"), execution_ids(trees))
        await store.advance_step(self._database, sealed, StepState.SEALED, trees=listed)
        # The journal has served: its trees are in the step's file.
        await asyncio.to_thread(shutil.rmtree, folder / "groups", ignore_errors=True)
        return replace(sealed, state=StepState.SEALED)

    def _seal_files(
        self, folder: Path, trees: Sequence[Tree], plan: StepPlan, updates: Mapping[str, int], resets: Collection[str]
    ) -> list[BatchRecord]:
        """Write trees and batches; from here on the step's training is determined."""
        write_trees(folder / "trees.parquet", trees)
        idle = idle_role(plan.trains, self._policy_of_role)
        if idle is not None and plan.step_in_stage == 1:
            write_batch(folder / _HELD, held_sequences(trees, idle))
        records = []
        for batch in assemble_batches(trees, plan, self._config, self._policy_of_role):
            file = folder / f"batch-{batch.policy_id}.parquet"
            write_batch(file, batch.sequences)
            records.append(
                BatchRecord(
                    policy_id=batch.policy_id,
                    update=updates[batch.policy_id],
                    digest=batch.digest.hex(),
                    file=str(file),
                    sequences=len(batch.sequences),
                    optimization=self._optimization(plan, batch.policy_id in resets),
                )
            )
        return records

    async def _roll(
        self, record: StepRecord, plan: StepPlan, versions: dict[str, str], journalled: Mapping[str, Tree]
    ) -> tuple[list[Tree], list[TaskDroppedError], Timeline]:
        """The step's trees in the order of its tasks, without those that were dropped."""
        trees = dict(journalled)
        progress = _Progress(self._events, record.step, plan, len(record.task_ids), len(trees))
        timeline = Timeline()
        dropped: list[TaskDroppedError] = []
        rollout = self._rollout_plan(record.step, plan, versions)

        async def roll(task_id: str) -> None:
            try:
                tree = await roll_task(self._tasks[task_id], rollout, self._services, progress, timeline)
            except TaskDroppedError as drop:
                dropped.append(drop)
                return
            trees[task_id] = tree
            await self._journal(record.step, task_id, tree, versions)

        async with asyncio.TaskGroup() as group:
            reporting = group.create_task(progress.report())
            async with asyncio.TaskGroup() as rolling:
                for task_id in record.task_ids:
                    if task_id not in trees:
                        rolling.create_task(roll(task_id))
            reporting.cancel()
        return [trees[task_id] for task_id in record.task_ids if task_id in trees], dropped, timeline

    async def _journalled(self, record: StepRecord, versions: dict[str, str]) -> dict[str, Tree]:
        """Groups that an earlier loop finished, where they were rolled out by the current weights."""
        journal = await store.journalled_groups(self._database, self._run_id, record.step)
        if any(group_versions != versions for _, group_versions in journal.values()):
            await store.forget_groups(self._database, self._run_id, record.step)
            return {}
        return {task_id: (await asyncio.to_thread(read_trees, Path(file)))[0] for task_id, (file, _) in journal.items()}

    async def _journal(self, step: int, task_id: str, tree: Tree, versions: dict[str, str]) -> None:
        file = self._step_folder(step) / "groups" / f"{tree.root.id}.parquet"
        await asyncio.to_thread(write_trees, file, [tree])
        await store.journal_group(self._database, self._run_id, step, task_id, str(file), versions)

    async def _drop(self, step: int, drop: TaskDroppedError) -> None:
        quarantined = await store.count_drop(
            self._database, self._run_id, drop.task_id, str(drop.fault), self._config.rollout.quarantine_after
        )
        await self._events.append(
            step,
            training_pb2.Condition(
                reason="TaskQuarantined" if quarantined else "TaskDropped",
                message=str(drop),
                remedy="it is no longer drawn" if quarantined else "it is drawn again at the end of the epoch",
            ),
        )

    async def _train(self, record: StepRecord, plan: StepPlan) -> StepRecord:
        """Have every batch applied by its learner, once."""
        begun = time.perf_counter()
        versions = dict(record.versions)
        metrics = dict(record.metrics)
        for batch in record.batches:
            sequences = await asyncio.to_thread(read_batch, Path(batch.file))
            self._probes[batch.policy_id] = _probe_sequences(sequences)
            result = await self._learning.apply(self._policies[batch.policy_id], batch, sequences)
            versions[batch.policy_id] = version_text(result.version)
            prefix = f"{batch.policy_id}/" if len(self._policies) > 1 else ""
            metrics |= finite({f"learner_{prefix}{name}": value for name, value in result.metrics.items()})
        metrics |= await self._drift(plan)
        metrics["seconds_update"] = time.perf_counter() - begun
        trained = replace(record, versions=versions, metrics=metrics)
        await store.advance_step(self._database, trained, StepState.TRAINED)
        return replace(trained, state=StepState.TRAINED)

    async def _drift(self, plan: StepPlan) -> dict[str, float]:
        """How far the role that is not trained has moved since its stage began."""
        idle = idle_role(plan.trains, self._policy_of_role)
        file = self._step_folder(plan.step - plan.step_in_stage + 1) / _HELD
        if idle is None or not await asyncio.to_thread(file.exists):
            return {}
        held = await asyncio.to_thread(read_batch, file)
        learner = self._policies[self._policy_of_role[idle]].learner
        return {f"drift_{idle}": drift(held, await learner.log_probs([each.token_ids.tolist() for each in held]))}

    async def _synchronise(self, record: StepRecord) -> StepRecord:
        """Bring the engines to the new weights of every policy that has some."""
        begun = time.perf_counter()
        metrics = dict(record.metrics)
        for batch in record.batches:
            report = await self._sync(self._policies[batch.policy_id])
            metrics["probe_mean_error"] = max(metrics.get("probe_mean_error", 0.0), report.probe_mean_error)
            metrics["probe_max_error"] = max(metrics.get("probe_max_error", 0.0), report.probe_max_error)
            metrics["seconds_paused"] = max(metrics.get("seconds_paused", 0.0), report.paused_seconds)
        metrics["seconds_sync"] = time.perf_counter() - begun
        synced = replace(record, metrics=metrics)
        await store.advance_step(self._database, synced, StepState.SYNCED)
        return replace(synced, state=StepState.SYNCED)

    async def _sync(self, policy: Policy) -> SyncReport:
        report = await sync_weights(
            policy.learner,
            policy.fleet,
            self._database.fence,
            self._probes[policy.policy_id],
            self._config.probe_bound,
        )
        for failure in report.failures:
            await self._events.append(
                0,
                training_pb2.Condition(
                    reason="WeightSyncFailed",
                    message=failure,
                    remedy="the replica is out of rotation until it has the current weights",
                ),
            )
        return report

    async def _commit(self, record: StepRecord, plan: StepPlan) -> None:
        metrics = dict(record.metrics)
        metrics["seconds"] = sum(metrics.get(f"seconds_{part}", 0.0) for part in ("rollout", "seal", "update", "sync"))
        committed = replace(record, metrics=metrics)
        trained = record.batches[0] if record.batches else None
        told = training_pb2.StepCommitted(
            stage=plan.stage,
            trains=plan.trains.value,
            metrics=metrics,
            version=None if trained is None else parse_version(record.versions[trained.policy_id]),
            digest=b"" if trained is None else bytes.fromhex(trained.digest),
        )
        self._violated = self._watch.observe(self._measured(committed, plan))
        conditions = [
            training_pb2.Condition(reason=each.reason, message=each.message, remedy=each.remedy)
            for each in self._violated
        ]
        # With the step, so that a restart that pauses the run has told why.
        events = self._events.prepare(record.step, told, *conditions)
        await store.advance_step(self._database, committed, StepState.COMMITTED, events)
        await self._events.published(len(events))
        if record.step % self._config.checkpoint.every == 0:
            await self._checkpoint(record.step)

    async def _checkpoint(self, step: int) -> None:
        """One manifest names the checkpoint of every policy; older ones beyond `keep` are forgotten."""
        known = await store.list_checkpoints(self._database, self._run_id)
        if any(saved == step for saved, _ in known):
            return
        manifest = {}
        for policy in self._policies.values():
            uri = self._folder / "checkpoints" / f"step-{step:06d}-{policy.policy_id}"
            saved = await policy.learner.checkpoint(self._database.fence, str(uri))
            manifest[policy.policy_id] = {
                "uri": saved.uri,
                "update": saved.step,
                "version": version_text(saved.version),
            }
        await store.record_checkpoint(self._database, self._run_id, step, manifest)
        for old, folders in (await store.list_checkpoints(self._database, self._run_id))[
            self._config.checkpoint.keep :
        ]:
            # The row goes first: a checkpoint that is listed is whole.
            await store.forget_checkpoint(self._database, self._run_id, old)
            for saved_policy in folders.values():
                await asyncio.to_thread(shutil.rmtree, saved_policy["uri"], ignore_errors=True)

    async def _versions(self) -> dict[str, str]:
        """What the engines serve now."""
        return {
            policy.policy_id: version_text((await policy.fleet.describe())[0].version)
            for policy in self._policies.values()
        }

    def _rollout_plan(self, step: int, plan: StepPlan, versions: Mapping[str, str]) -> RolloutPlan:
        config = self._config
        return RolloutPlan(
            scope=self._run_id,
            step=step,
            seed=config.seed,
            designs=plan.designs,
            executions=plan.executions,
            max_attempts=config.rollout.max_attempts,
            designer_sampling=common_pb2.Sampling(
                temperature=1.0, max_tokens=config.sampling.designer.max_tokens, training=True
            ),
            executor_sampling=common_pb2.Sampling(
                temperature=1.0, max_tokens=config.sampling.executor.max_tokens, training=True
            ),
            designer_version=parse_version(versions[self._policy_of_role["designer"]]),
            executor_version=parse_version(versions[self._policy_of_role["executor"]]),
            budgets=config.budgets,
            delivery_instruction=config.delivery_instruction,
            rewards=config.rewards,
        )

    def _plan(self, step: int) -> StepPlan:
        return plan_of(self._config, self._fork, step)

    def _measured(self, record: StepRecord, plan: StepPlan) -> StepMetrics:
        return StepMetrics(record.step, plan.trains.value, record.metrics)

    async def _policies_to_reset(self, plan: StepPlan) -> set[str]:
        """Policies whose optimizer forgets its moments before the next update: the first of a stage that asks for it."""
        if not plan.resets_optimizer:
            return set()
        first = plan.step - plan.step_in_stage + 1
        updated = {
            batch.policy_id
            for record in await store.list_steps(self._database, self._run_id)
            if first <= record.step < plan.step
            for batch in record.batches
        }
        return self._policies.keys() - updated

    def _optimization(self, plan: StepPlan, reset_optimizer: bool) -> dict[str, object]:
        optimization = self._config.optimization
        return MessageToDict(
            learner_pb2.Optimization(
                learning_rate=plan.learning_rate,
                mini_batches=optimization.mini_batches,
                clip_low=optimization.clip_low,
                clip_high=optimization.clip_high,
                max_grad_norm=optimization.max_grad_norm,
                importance_cap=optimization.importance_cap,
                reset_optimizer=reset_optimizer,
                scale_by_mini_batches=True,
            )
        )

    def _step_folder(self, step: int) -> Path:
        return self._folder / "steps" / f"{step:06d}"


class _Progress(Silent):
    """Counts executions that ended and tells the watchers now and then."""

    _INTERVAL_SECONDS = 0.5

    def __init__(self, events: EventLog, step: int, plan: StepPlan, tasks: int, tasks_done: int) -> None:
        self._events = events
        self._step = step
        self._done = tasks_done * plan.designs * plan.executions
        self._total = tasks * plan.designs * plan.executions

    def execution_done(self) -> None:
        self._done += 1

    async def report(self) -> None:
        while True:
            await self._events.progress(
                self._step,
                training_pb2.StepProgress(
                    state=training_pb2.STEP_STATE_ROLLING,
                    executions_done=self._done,
                    executions_total=self._total,
                ),
            )
            await asyncio.sleep(self._INTERVAL_SECONDS)


def _tokens_of(trees: Iterable[Tree]) -> int:
    return sum(generated_tokens(tree.nodes) for tree in trees)


def _probe_sequences(sequences: Sequence[TrainingSequence]) -> list[list[int]]:
    """A few sequences of the batch, the shortest first: enough to tell one set of weights from another."""
    shortest = sorted(sequences, key=lambda sequence: len(sequence.token_ids))[:_PROBES]
    return [_FIXED_PROBE, *(sequence.token_ids.tolist() for sequence in shortest)]
