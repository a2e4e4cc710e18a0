"""The runs of this orchestrator: created, forked, queued, resumed after a restart, paused, cancelled.

One run at a time holds the policies; it is the one with a task here. Others are refused, or wait in the store as QUEUED and
are started, oldest first, when the holder ends or pauses.
"""

import asyncio
import contextlib
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
from troupe.v1 import training_pb2
from troupe_contracts.errors import FailedPrecondition, InvalidArgument, NotFound

from troupe_orchestrator.engines import Engines, require
from troupe_orchestrator.evaluation.jobs import EvalJobs
from troupe_orchestrator.run_config import RunConfig, dump_run_config
from troupe_orchestrator.store.database import Database, LeaseLostError, StoreUnavailableError
from troupe_orchestrator.store.runs import RunRecord, RunState, create_run, get_run, runs_in_state, set_run_state
from troupe_orchestrator.store.steps import committed_steps, last_step
from troupe_orchestrator.training.endings import ending_of
from troupe_orchestrator.training.events import EventLog
from troupe_orchestrator.training.fork import fork_of
from troupe_orchestrator.training.inputs import load_data, overridden, parse
from troupe_orchestrator.training.listener import NOBODY, RunListener
from troupe_orchestrator.training.plan import PolicyDescription, describe, plan_message
from troupe_orchestrator.training.queue import TaskQueue
from troupe_orchestrator.training.record import (
    Fork,
    RunOrigin,
    TrainingData,
    origin,
    origin_of,
    source_of_process,
)
from troupe_orchestrator.training.resumption import same_data, what_changed
from troupe_orchestrator.training.run_loop import RunLoop
from troupe_orchestrator.training.validation import Validation

logger = structlog.get_logger()

_STORE_PAUSE_SECONDS = 1.0
_RUN_ID = re.compile(r"^[a-z0-9][a-z0-9-]{0,62}$")


@dataclass(slots=True)
class _Active:
    loop: RunLoop
    task: asyncio.Task[None]
    stopping: tuple[RunState, str] | None = None
    """What the run is to be once its loop has ended, and why; None is what the loop itself says."""
    ended: bool = False
    """The loop has ended; how is being recorded, which nobody cuts short."""


class Runs:
    """All runs of a store."""

    def __init__(
        self,
        database: Database,
        data_dir: Path,
        engines: Engines | None,
        boundary: asyncio.Lock,
        jobs: EvalJobs,
        patience_seconds: float,
        listener: RunListener = NOBODY,
    ) -> None:
        """Runs of a store.

        Args:
            listener: told of what they do.
        """
        self._listener = listener
        self._jobs = jobs
        self._patience_seconds = patience_seconds
        self._database = database
        self._data_dir = data_dir
        self._engines = engines
        self._boundary = boundary
        self._logs: dict[str, EventLog] = {}
        self._active: dict[str, _Active] = {}
        self._creating = asyncio.Lock()
        self._starting: set[asyncio.Task[None]] = set()
        self._closed = False
        self._standing: Callable[[], Sequence[training_pb2.Condition]] = tuple

    async def resume_interrupted(self) -> None:
        """Go on with the run that was running when the orchestrator before this one ended, or with the first queued."""
        # Read now: the files of a checkout may be others by the time that a run is created.
        await asyncio.to_thread(source_of_process)
        if not require(self._engines).policies:
            return
        async with self._creating:
            await self._start_what_is_to_run()

    async def create(self, run_id: str, config_text: str, queue: bool = False) -> RunRecord:
        """Validate a config and start its run, or queue it.

        Raises:
            InvalidArgument: the config or the id cannot be used; each key is named.
            FailedPrecondition: another run trains these policies, or the id belongs to a run with another config.
        """
        config = parse(config_text)
        # One at a time: two calls that come together must not both find the policies free.
        async with self._one_at_a_time():
            return await self._create(_named(run_id, config.name), config, None, queue)

    async def fork(self, parent_id: str, step: int, overrides: str, run_id: str, queue: bool = False) -> RunRecord:
        """Start a run from the weights that another had after one of its steps.

        Raises:
            NotFound: there is no such run.
            InvalidArgument: the overrides or the id cannot be used.
            FailedPrecondition: the step cannot be forked, or what `create` raises it for.
        """
        parent = await self.get(parent_id)
        config, given = overridden(parent.config, overrides)
        if config.steps <= step:
            raise InvalidArgument(
                "config.steps",
                f"is {config.steps}: steps count from the parent's first, so a fork after step {step} needs more",
            )
        data = await asyncio.to_thread(load_data, config)
        fork = await fork_of(self._database, parent, step, config, given, data)
        async with self._one_at_a_time():
            return await self._create(_named(run_id, f"{parent_id[:40]}-fork"), config, fork, queue)

    async def _create(self, run_id: str, config: RunConfig, fork: Fork | None, queue: bool) -> RunRecord:
        effective = dump_run_config(config)
        existing = await get_run(self._database, run_id)
        if existing is not None:
            before = origin_of(existing.provenance)
            if existing.config != effective or (before is not None and before.fork != fork):
                raise FailedPrecondition(run_id, "exists with another config; choose another run_id")
            return existing
        holder = self._holder()
        if holder is not None and not queue:
            raise FailedPrecondition(
                holder,
                f"run {holder} trains these policies; queue this one, or wait for that, or pause or cancel it first "
                f"(`troupe runs cancel {holder}`)",
            )
        data = await asyncio.to_thread(load_data, config)
        begins = await origin(source_of_process(), config, data, require(self._engines), fork)
        folder = (self._data_dir / "runs" / run_id).resolve()
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        record = RunRecord(
            run_id=run_id,
            state=RunState.RUNNING if holder is None else RunState.QUEUED,
            reason="" if holder is None else f"waits for run {holder}, which trains these policies",
            config=effective,
            total_steps=config.steps,
            folder=str(folder),
            created_at=time.time(),
            ended_at=None,
            provenance=begins.to_json(),
        )
        await create_run(self._database, record, record.provenance)
        if holder is None:
            await self._launch(record, config, data)
        return record

    async def plan(self, config_text: str, descriptions: Sequence[PolicyDescription]) -> training_pb2.RunPlan:
        """What a run with this config would take. Starts nothing.

        Args:
            descriptions: of the policies, where this orchestrator has no services to ask.

        Raises:
            InvalidArgument: the config cannot be used, or descriptions come beside services.
        """
        config = parse(config_text)
        data = await asyncio.to_thread(load_data, config)
        policies = list(descriptions)
        if self._engines is not None and self._engines.policies:
            if descriptions:
                raise InvalidArgument(
                    "policies", "are given, and this orchestrator has services to ask: leave them out"
                )
            policies = await describe(self._engines.policies)
        return plan_message(config, len(data.tasks), policies)

    async def get(self, run_id: str) -> RunRecord:
        """One run.

        Raises:
            NotFound: there is none with this id.
        """
        record = await get_run(self._database, run_id)
        if record is None:
            raise NotFound("run", run_id)
        return record

    async def pause(self, run_id: str) -> RunRecord:
        """Stop a run at the next step boundary."""
        record = await self.get(run_id)
        if record.state is not RunState.RUNNING:
            raise FailedPrecondition(run_id, f"is {record.state}, only a running run can be paused")
        return await self._stop(record, RunState.PAUSED, "paused by request; resume it")

    async def resume(self, run_id: str, generation: int | None = None) -> RunRecord:
        """Go on with a paused or failed run. Whoever resumes knows which conditions hold.

        Args:
            generation: of the spec of the object that asks for it, recorded as carried out with the change of state.
        """
        record = await self.get(run_id)
        if record.state not in (RunState.PAUSED, RunState.FAILED):
            raise FailedPrecondition(run_id, f"is {record.state}, only a paused or failed run can be resumed")
        async with self._one_at_a_time():
            holder = self._holder()
            if holder is not None:
                raise FailedPrecondition(
                    holder, f"run {holder} trains these policies; wait for it, or pause or cancel it first"
                )
            # First, since a run whose file is gone or is another has to stay as it is.
            config = parse(record.config)
            data = await same_data(record, config)
            # On record, since an orchestrator that is killed now goes on without asking again.
            acknowledged = await committed_steps(self._database, run_id)
            await self._set_state(run_id, RunState.RUNNING, "", acknowledged, generation)
            await self._tell_changes(record, config, data)
            await self._launch(await self.get(run_id), config, data)
        return await self.get(run_id)

    async def cancel(self, run_id: str) -> RunRecord:
        """End a run, also a queued one; its committed steps stay."""
        record = await self.get(run_id)
        if record.state not in (RunState.SUCCEEDED, RunState.CANCELLED):
            record = await self._stop(record, RunState.CANCELLED, "cancelled by request")
        # Also where an earlier call was cut off before this.
        if record.state is RunState.CANCELLED:
            await self._jobs.end_validations(run_id)
        return record

    async def events(self, run_id: str) -> EventLog:
        """The run's events."""
        record = await self.get(run_id)
        if run_id not in self._logs:
            opened = await EventLog.open(self._database, run_id, self._listener)
            # Of two who open it at once, both get the first's: there is one writer.
            log = self._logs.setdefault(run_id, opened)
            if log is opened and run_id not in self._active and record.state is not RunState.QUEUED:
                await log.end()
        return self._logs[run_id]

    @property
    def under_way(self) -> bool:
        """A run has the policies."""
        return bool(self._active)

    async def tell(self, condition: training_pb2.Condition) -> None:
        """Put a condition that is not of its own making into the events of the run that is under way."""
        for run_id in list(self._active):
            record = await last_step(self._database, run_id)
            events = await self.events(run_id)
            await events.append(0 if record is None else record.step, condition)

    def on_start(self, standing: Callable[[], Sequence[training_pb2.Condition]]) -> None:
        """Have each run that starts told of what holds then and was told when it was not under way.

        Args:
            standing: called on the event loop; must not block.
        """
        self._standing = standing

    async def close(self) -> None:
        """End the loops where they stand; the store knows how to go on."""
        self._closed = True
        tasks = [*self._starting, *(active.task for active in self._active.values())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for log in self._logs.values():
            await log.end()

    def _holder(self) -> str | None:
        """The run that has the policies.

        Raises:
            FailedPrecondition: there is nothing to train.
        """
        if not require(self._engines).policies:
            raise FailedPrecondition(
                "learner", "this orchestrator was started without a learner; set TROUPE_LEARNER to train"
            )
        return next(iter(self._active), None)

    @contextlib.asynccontextmanager
    async def _one_at_a_time(self) -> AsyncIterator[None]:
        """While a client starts a run. Where the store fails, or the client gives up, it may be on record as running all the
        same: then it is started.
        """
        try:
            async with self._creating:
                yield
        except (StoreUnavailableError, asyncio.CancelledError):
            self._wake(in_doubt=True)
            raise

    async def _start_what_is_to_run(self) -> None:
        """Start what is on record as running, or else the first that is queued."""
        for record in await runs_in_state(self._database, RunState.RUNNING):
            if record.run_id in self._active:
                continue
            if self._active:
                holder = next(iter(self._active))
                await self._set_state(
                    record.run_id, RunState.QUEUED, f"waits for run {holder}, which trains these policies"
                )
                continue
            logger.info("resuming", run=record.run_id)
            await self._start(record)
        await self._start_queued()

    async def _start_queued(self) -> None:
        """Start the oldest queued run, or the next one that can be, if the policies are free."""
        for record in await runs_in_state(self._database, RunState.QUEUED):
            if self._active:
                return
            await self._set_state(record.run_id, RunState.RUNNING, "")
            await self._start(record)

    async def _start(self, record: RunRecord) -> None:
        """Launch a run that is to run; one whose data cannot be had is paused by name."""
        try:
            config = parse(record.config)
            data = await same_data(record, config)
        except (InvalidArgument, FailedPrecondition) as error:
            await self._set_state(record.run_id, RunState.PAUSED, f"{error}; mend it and resume the run")
            await (await self.events(record.run_id)).end()
            return
        await self._tell_changes(record, config, data)
        await self._launch(record, config, data)

    async def _tell_changes(self, record: RunRecord, config: RunConfig, data: TrainingData) -> None:
        """Say in the run's events what is no longer as it was when the run began."""
        told = await what_changed(record, config, data, require(self._engines))
        if told is not None:
            events = await self.events(record.run_id)
            await events.append(await committed_steps(self._database, record.run_id), told)

    async def _launch(self, record: RunRecord, config: RunConfig, data: TrainingData) -> None:
        engines = require(self._engines)
        events = await self.events(record.run_id)
        events.begin()
        began: RunOrigin | None = origin_of(record.provenance)
        fork = None if began is None else began.fork
        held_out = data.held_out
        loop = RunLoop(
            record.run_id,
            config,
            data.tasks,
            Path(record.folder),
            self._database,
            events,
            engines.services,
            engines.policies,
            self._boundary,
            None if held_out is None else Validation(self._jobs, record.run_id, config, held_out),
            fork,
            None if fork is None or fork.queue is None else TaskQueue.from_json(fork.queue),
            record.acknowledged_step,
            self._patience_seconds,
            self._listener,
        )
        # In one go with its being under way: from here on it is told by `tell`.
        standing = self._standing()
        supervised = self._supervise(record.run_id, loop, events, standing)
        task = asyncio.create_task(supervised, name=f"run-{record.run_id}")
        self._active[record.run_id] = _Active(loop, task)

    async def _supervise(
        self, run_id: str, loop: RunLoop, events: EventLog, standing: Sequence[training_pb2.Condition]
    ) -> None:
        """Tell what holds, run the loop and record how it ended."""
        try:
            try:
                with contextlib.suppress(StoreUnavailableError):  # which the loop waits for, and tells of
                    for condition in standing:
                        await self.tell(condition)
                done = await loop.run()
            finally:
                self._active[run_id].ended = True
            if done:
                await self._ended(run_id, RunState.SUCCEEDED, "")
            else:
                await self._stopped(run_id)
        except LeaseLostError:
            raise
        except asyncio.CancelledError:
            if self._active[run_id].stopping is None:
                raise
            await self._stopped(run_id)
        except Exception as error:  # the boundary of a run: whatever ends it is recorded with it
            await self._failed(run_id, error)
        finally:
            del self._active[run_id]
            await events.end()
            self._wake()

    def _wake(self, in_doubt: bool = False) -> None:
        """The policies are free: start the next queued run.

        Args:
            in_doubt: the store failed, and may have a run as running that nobody started.
        """

        async def start(in_doubt: bool) -> None:
            while True:
                try:
                    async with self._creating:
                        return await (self._start_what_is_to_run() if in_doubt else self._start_queued())
                except StoreUnavailableError as error:
                    logger.warning("waiting for the store, to start what is to run", error=str(error))
                    in_doubt = True
                    await asyncio.sleep(_STORE_PAUSE_SECONDS)

        if not self._closed:
            task = asyncio.create_task(start(in_doubt), name="start-queued")
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    async def _failed(self, run_id: str, error: BaseException) -> None:
        ending = ending_of(error)
        logger.error(
            "run ended", run=run_id, state=ending.state, reason=ending.reason,
            exc_info=error if ending.state is RunState.FAILED else None,
        )  # fmt: skip
        await self._ended(run_id, ending.state, ending.reason, ending.condition)

    async def _stop(self, record: RunRecord, state: RunState, reason: str) -> RunRecord:
        active = self._active.get(record.run_id)
        if active is None:
            # One that is being started just now has its loop after this.
            async with self._creating:
                active = self._active.get(record.run_id)
                if active is None:
                    now = await self.get(record.run_id)
                    if now.state is record.state:
                        await self._set_state(record.run_id, state, reason)
                        await (await self.events(record.run_id)).end()
                    return await self.get(record.run_id)
        if active.stopping is None or active.stopping[0] is not RunState.CANCELLED:
            active.stopping = (state, reason)
        active.loop.stop()
        if state is RunState.CANCELLED and not active.ended:
            active.task.cancel()
        # The loop records how it ended. A caller whose deadline passes first must not cut its step short.
        await asyncio.wait([active.task])
        return await self.get(record.run_id)

    async def _stopped(self, run_id: str) -> None:
        stopping = self._active[run_id].stopping
        assert stopping is not None
        await self._ended(run_id, *stopping)

    async def _ended(
        self, run_id: str, state: RunState, reason: str, condition: training_pb2.Condition | None = None
    ) -> None:
        """Record what a run is whose loop has ended, however long the store is away: nobody else would."""
        while True:
            stopping = self._active[run_id].stopping
            if state is not RunState.SUCCEEDED and stopping is not None and stopping[0] is RunState.CANCELLED:
                state, reason = stopping
            try:
                if condition is not None:
                    step = await committed_steps(self._database, run_id)
                    await (await self.events(run_id)).append(step, condition)
                    condition = None
                return await self._set_state(run_id, state, reason)
            except StoreUnavailableError as error:
                logger.warning("waiting for the store, to record how a run ended", run=run_id, error=str(error))
                await asyncio.sleep(_STORE_PAUSE_SECONDS)

    async def _set_state(
        self,
        run_id: str,
        state: RunState,
        reason: str,
        acknowledged_step: int | None = None,
        generation: int | None = None,
    ) -> None:
        await set_run_state(self._database, run_id, state, reason, acknowledged_step, generation)
        step = await committed_steps(self._database, run_id)
        number = training_pb2.RunState.Value(f"RUN_STATE_{state.upper()}")
        events = await self.events(run_id)
        if state is RunState.RUNNING:
            # Who watches from now on waits for its loop.
            events.begin()
        await events.append(step, training_pb2.StateChanged(state=number, reason=reason))


def _named(run_id: str, prefix: str) -> str:
    """The id that was asked for, or a new one.

    Raises:
        InvalidArgument: it cannot be one.
    """
    chosen = run_id or f"{prefix}-{uuid.uuid4().hex[:6]}"
    if not _RUN_ID.match(chosen):
        raise InvalidArgument("run_id", f"{chosen!r} must match {_RUN_ID.pattern}")
    return chosen
