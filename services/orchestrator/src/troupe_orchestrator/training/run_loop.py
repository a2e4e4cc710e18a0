"""The loop of one run: looks at store, learners and engines, does the one thing that `protocol` says is next, looks again.

There is one way on, after a step, after a fault and after a crash. The sealed batch is the log: no batch is trained twice
and no rollout of a sealed step is repeated. What fails and can come back is waited for; what does not comes to whoever
started the loop as an error, and the store says where to go on.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

from troupe.v1 import training_pb2
from troupe_contracts import log

from troupe_orchestrator.datasets.task import Task
from troupe_orchestrator.evaluation.best import best_validation
from troupe_orchestrator.rollout.task import Services
from troupe_orchestrator.run_config import RunConfig
from troupe_orchestrator.stages import StepPlan
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.step_outcomes import stage_ends
from troupe_orchestrator.store.steps import StepRecord, StepState, advance_step, last_step
from troupe_orchestrator.training.batch import read_batch
from troupe_orchestrator.training.checkpoints import save_checkpoint
from troupe_orchestrator.training.conditions import ConditionWatch, StepMetrics, Violation, finite
from troupe_orchestrator.training.drift import drift, idle_role
from troupe_orchestrator.training.endings import ConditionsViolatedError
from troupe_orchestrator.training.endurance import LASTING, PASSING, Endurance
from troupe_orchestrator.training.events import EventLog
from troupe_orchestrator.training.fork import inherit_held, last_step_of, plan_of, prepare_base
from troupe_orchestrator.training.generations import Generations
from troupe_orchestrator.training.learning import Applied, Learning
from troupe_orchestrator.training.listener import NOBODY, RunListener
from troupe_orchestrator.training.plateau import stage_end
from troupe_orchestrator.training.policies import Policy, parse_version, version_text
from troupe_orchestrator.training.protocol import NEEDS, Action, Apply, PolicyView, Sync, Work, next_action
from troupe_orchestrator.training.queue import TaskQueue
from troupe_orchestrator.training.record import Fork
from troupe_orchestrator.training.retention import collect, sweep
from troupe_orchestrator.training.rolling import Rolling, StepFolders
from troupe_orchestrator.training.serving import Serving, serves
from troupe_orchestrator.training.validation import NOT_DUE, Validation


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
        validation: Validation | None = None,
        fork: Fork | None = None,
        first_queue: TaskQueue | None = None,
        acknowledged_step: int = 0,
        patience_seconds: float = 120.0,
        listener: RunListener = NOBODY,
    ) -> None:
        """One run.

        Args:
            boundary: held while a step is under way; an eval job that needs the policies waits for it.
            fork: where the run left its parent, if it is a fork.
            first_queue: from which the first step draws; a fresh one unless given.
            acknowledged_step: the run was resumed after it by somebody who knows which conditions hold.
            patience_seconds: how long a service that fails is waited for.
            listener: told of each step that is rolled out.
        """
        self._listener = listener
        self._run_id = run_id
        self._config = config
        self._fork = fork
        self._validation = validation
        self._start = 0 if fork is None else fork.step
        self._first_queue = first_queue or TaskQueue(config.seed)
        self._acknowledged_step = acknowledged_step
        # What the committed steps say of those to come, as of the newest look.
        self._watch = ConditionWatch(config.conditions)
        self._violated: list[Violation] = []
        self._stages_ended: tuple[int, ...] = ()
        self._folder = folder
        self._folders = StepFolders(folder)
        self._database = database
        self._events = events
        self._policies = {policy.policy_id: policy for policy in policies}
        self._policy_of_role = {role: policy.policy_id for policy in policies for role in policy.roles}
        self._boundary = boundary
        self._stop = asyncio.Event()
        self.waits_for_its_turn = False
        """An eval job has the policies: nothing is under way that a step needs."""
        self.in_line = asyncio.Event()
        """It has asked for the policies."""
        self._opened = False
        self._learning = Learning(database, run_id)
        self._generations = Generations(events)
        self._rolling = Rolling(
            run_id,
            config,
            {task.task_id: task for task in tasks},
            self._folders,
            database,
            events,
            services,
            self._policy_of_role,
            fork,
        )
        self._serving = Serving(self._policies, database, events, config.probe_bound)
        self._endurance = Endurance(events, patience_seconds)
        self._applied: dict[str, Applied] = {}

    @property
    def waits_for(self) -> str:
        """What the run waits for now, with the remedy; empty while it does something."""
        return self._endurance.waits_for

    def stop(self) -> None:
        """Ask the loop to return at the next step boundary."""
        self._stop.set()

    async def run(self) -> bool:
        """Run to the end of the plan; false when `stop` came first.

        Raises:
            ConditionsViolatedError: conditions of the config hold after a committed step.
        """
        wanted = 0
        while True:
            # Between steps: an eval job that waits for the policies gets them here.
            await asyncio.sleep(0)
            if self._stop.is_set():
                return False
            async with self._turn():
                step = await self._reach(wanted)
            if step >= self._last_step():
                return True
            if self._violated and step > self._acknowledged_step:
                raise ConditionsViolatedError(step, self._violated)
            wanted = step + 1

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        self.waits_for_its_turn = True
        self.in_line.set()
        async with self._boundary:
            self.waits_for_its_turn = False
            yield

    async def _open(self) -> None:
        """Have what a fork starts from, and know which stages ended early."""
        await sweep(self._database, self._run_id, self._folder)
        if self._fork is not None:
            policies = list(self._policies.values())
            await prepare_base(self._database, self._run_id, self._folder, self._fork, policies)
            await inherit_held(self._database, self._folder, self._fork, self._config)
        self._stages_ended = await stage_ends(self._database, self._run_id)

    async def _reach(self, step: int) -> int:
        """Finish the step that is under way, if one is, and all up to `step`; the newest step, committed."""
        newest = self._start
        while True:
            action: Action | None = None
            try:
                if self._endurance.troubled:
                    await self._events.reread()
                    await self._endurance.tell()
                if not self._opened:
                    await self._open()
                    self._opened = True
                record = await self._look()
                newest = self._start if record is None else record.step
                with log.bound(run=self._run_id, step=newest, trace=log.new_trace()):
                    action, policy_id = await self._next(record)
                    self._endurance.begins()
                    if action is Work.BEGIN:
                        await self._keep(newest)
                        if newest >= step:
                            return newest
                        queue = self._first_queue if record is None else TaskQueue.from_json(record.queue)
                        await self._rolling.begin(newest + 1, queue, self._watch.state())
                    else:
                        await self._do(action, policy_id, record)
            except LASTING:
                raise
            except PASSING as error:
                await self._endurance.endure(action, error, newest)
            else:
                self._endurance.succeeded(action)

    async def _look(self) -> StepRecord | None:
        """The newest step. What a committed one says of those to come is known from here on, whether or not its commit was
        answered.
        """
        record = await last_step(self._database, self._run_id)
        if record is not None and record.state is StepState.COMMITTED:
            if record.ends_stage and record.step not in self._stages_ended:
                self._stages_ended = (*self._stages_ended, record.step)
            self._watch, self._violated = self._watched(record)
            self._endurance.committed()
        return record

    def _watched(self, record: StepRecord) -> tuple[ConditionWatch, list[Violation]]:
        """The conditions once they are told of a step, and those that hold after it."""
        watch = ConditionWatch(self._config.conditions, record.watch)
        trains = self._plan(record.step).trains.value
        return watch, watch.observe(StepMetrics(record.step, trains, record.metrics))

    async def _next(self, record: StepRecord | None) -> tuple[Action, str]:
        """What comes next, and for which policy."""
        state = StepState.COMMITTED if record is None else record.state
        views = {}
        for policy_id, policy in self._policies.items():
            learner = await self._learning.look(policy)
            await self._generations.look(learner, 0 if record is None else record.step)
            views[policy_id] = PolicyView(
                learner=self._learning.view(policy, learner),
                sealed=await self._learning.sealed(policy_id),
                saved=await self._learning.saved(policy_id),
                engines_current=not NEEDS[state].engines
                # An engine that is restarted while tasks are rolled out is brought back as the last sync brought it.
                or (
                    (policy.fleet.brings_up or state is not StepState.ROLLING)
                    and await serves(policy, version_text(learner.version))
                ),
            )
        return next_action(self._run_id, state, views)

    async def _do(self, action: Action, policy_id: str, record: StepRecord | None) -> None:
        match action:
            case Sync():
                await self._serving.sync(self._policies[policy_id], 0 if record is None else record.step)
            case Work():
                assert record is not None
                await self._work(action, record, self._plan(record.step))
            case _:
                applied = await self._learning.do(self._policies[policy_id], action)
                if isinstance(action, Apply) and applied is not None:
                    self._remember(policy_id, applied)

    async def _work(self, work: Work, record: StepRecord, plan: StepPlan) -> None:
        match work:
            case Work.ROLL:
                self._listener.rolls(self._run_id, plan)
                versions = await self._serving.begin()
                await self._rolling.roll_and_seal(record, plan, versions)
            case Work.RECORD_TRAINED:
                await self._record_trained(record, plan)
            case Work.RECORD_SYNCED:
                await self._serving.record(record)
            case Work.COMMIT:
                await self._commit(record, plan)
            case Work.BEGIN:
                raise AssertionError("unreachable: the boundary is where settling ends")

    def _remember(self, policy_id: str, applied: Applied) -> None:
        """Keep what the newest update gave until it is recorded, and sequences of it for the probe of the next load."""
        self._applied[policy_id] = applied
        self._serving.probe_on(policy_id, [each.token_ids for each in applied.sequences])

    async def _record_trained(self, record: StepRecord, plan: StepPlan) -> None:
        versions, metrics = dict(record.versions), dict(record.metrics)
        metrics["seconds_update"] = 0.0
        for batch in record.batches:
            policy = self._policies[batch.policy_id]
            applied = self._applied.get(batch.policy_id)
            if applied is None or applied.result.step != batch.update:
                applied = await self._learning.result(policy, batch)
                self._remember(batch.policy_id, applied)
            versions[batch.policy_id] = version_text(applied.result.version)
            prefix = f"{batch.policy_id}/" if len(self._policies) > 1 else ""
            metrics |= {f"learner_{prefix}{name}": value for name, value in applied.result.metrics.items()}
            metrics["seconds_update"] += applied.seconds
        metrics |= await self._drift(plan)
        trained = replace(record, versions=versions, metrics=finite(metrics))
        await advance_step(self._database, trained, StepState.TRAINED)
        self._applied.clear()

    async def _drift(self, plan: StepPlan) -> dict[str, float]:
        """How far the role that is not trained has moved since its stage began."""
        idle = idle_role(plan.trains, self._policy_of_role)
        if idle is None:
            return {}
        file = await asyncio.to_thread(self._folders.newest_held, plan.step - plan.step_in_stage + 1)
        if file is None:
            return {}
        held = await asyncio.to_thread(read_batch, file)
        if not held:
            # No script of the stage's first step asked an agent: nothing was said to measure by.
            return {}
        policy = self._policies[self._policy_of_role[idle]]
        scored = await policy.learner.log_probs(
            [each.token_ids.tolist() for each in held], await self._learning.version(policy)
        )
        return {f"drift_{idle}": drift(held, scored)}

    async def _commit(self, record: StepRecord, plan: StepPlan) -> None:
        metrics = dict(record.metrics)
        metrics["seconds"] = sum(metrics.get(f"seconds_{part}", 0.0) for part in ("rollout", "seal", "update", "sync"))
        validated = NOT_DUE if self._validation is None else await self._validation.after(record.step)
        metrics = finite(metrics | validated.metrics)
        plateau = await stage_end(self._database, self._run_id, self._fork, plan, metrics)
        committed = replace(record, metrics=metrics, ends_stage=plateau is not None)
        trained = record.batches[0] if record.batches else None
        told = training_pb2.StepCommitted(
            stage=plan.stage,
            trains=plan.trains.value,
            metrics=metrics,
            version=None if trained is None else parse_version(record.versions[trained.policy_id]),
            digest=b"" if trained is None else bytes.fromhex(trained.digest),
        )
        _, violated = self._watched(committed)
        conditions = [
            training_pb2.Condition(reason=each.reason, message=each.message, remedy=each.remedy) for each in violated
        ]
        if plateau is not None:
            conditions.append(plateau)
        # With the step, so that a restart that pauses the run has told why.
        async with self._events.storing(record.step, *validated.events, told, *conditions) as events:
            await advance_step(self._database, committed, StepState.COMMITTED, events)

    async def _keep(self, step: int) -> None:
        """Save the checkpoint that is due after a step."""
        if step == self._start:
            return
        best = await best_validation(self._database, self._run_id)
        due = step % self._config.checkpoint.every == 0 or step == self._last_step()
        if due or (best is not None and best.step == step):
            keep = self._config.checkpoint.keep
            await save_checkpoint(
                self._database, self._run_id, step, self._folder, self._policies.values(), keep, self._start
            )
        await collect(self._database, self._run_id, step, self._config)

    def _plan(self, step: int) -> StepPlan:
        return plan_of(self._config, self._fork, step, self._stages_ended)

    def _last_step(self) -> int:
        return last_step_of(self._config, self._fork, self._stages_ended)
