"""Which run has the policies, and which is next.

One run at a time holds the policies; it is the one that is under way here. Others wait in the store as QUEUED and are
started, oldest first, when the holder ends or pauses. What the store has as running is started after a restart.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import structlog
from troupe.v1 import training_pb2
from troupe_contracts.errors import FailedPrecondition, InvalidArgument, Unavailable

from troupe_orchestrator.engines import Engines, require
from troupe_orchestrator.evaluation.jobs import EvalJobs
from troupe_orchestrator.run_config import RunConfig
from troupe_orchestrator.store.database import Database, StoreUnavailableError
from troupe_orchestrator.store.runs import RunRecord, RunState, runs_in_state
from troupe_orchestrator.training.active_run import STORE_PAUSE_SECONDS, ActiveRun
from troupe_orchestrator.training.inputs import parse
from troupe_orchestrator.training.listener import NOBODY, RunListener
from troupe_orchestrator.training.queue import TaskQueue
from troupe_orchestrator.training.record import TrainingData, origin_of, source_of_process
from troupe_orchestrator.training.resumption import check_policies, same_data, what_changed
from troupe_orchestrator.training.run_loop import RunLoop
from troupe_orchestrator.training.run_records import RunRecords
from troupe_orchestrator.training.validation import Validation

logger = structlog.get_logger()


class RunQueue:
    """The run that is under way, and starting the next one."""

    def __init__(
        self,
        database: Database,
        records: RunRecords,
        engines: Engines | None,
        boundary: asyncio.Lock,
        jobs: EvalJobs,
        patience_seconds: float,
        listener: RunListener = NOBODY,
    ) -> None:
        """A queue with nothing under way.

        Args:
            listener: told of the steps that runs roll out.
        """
        self._database = database
        self._records = records
        self._engines = engines
        self._boundary = boundary
        self._jobs = jobs
        self._patience_seconds = patience_seconds
        self._listener = listener
        self._active: ActiveRun | None = None
        self._choosing = asyncio.Lock()
        self._starting: set[asyncio.Task[None]] = set()
        self._telling: set[asyncio.Task[None]] = set()
        self._closed = False
        self._standing: Callable[[], Sequence[training_pb2.Condition]] = tuple
        self._idle: Callable[[], None] = lambda: None

    async def resume_interrupted(self) -> None:
        """Go on with the run that was running when the orchestrator before this one ended, or with the first queued.

        Returns once it is in line for the policies.
        """
        # Read now: the files of a checkout may be others by the time that a run is created.
        await asyncio.to_thread(source_of_process)
        if not require(self._engines).policies:
            return
        async with self._choosing:
            await self._start_interrupted()
            await self._start_queued()
            if self._active is not None:
                await self._active.in_line()

    @property
    def under_way(self) -> bool:
        """A run has the policies."""
        return self._active is not None

    def holder(self) -> str | None:
        """The run that has the policies.

        Raises:
            FailedPrecondition: there is nothing to train.
        """
        if not require(self._engines).policies:
            raise FailedPrecondition(
                "learner", "this orchestrator was started without a learner; set TROUPE_LEARNER to train"
            )
        return None if self._active is None else self._active.run_id

    def waits_for(self, run_id: str) -> str:
        """What a run waits for now, with the remedy; empty where it does something, or is not under way."""
        active = self._active_as(run_id)
        return "" if active is None else active.waits_for

    @contextlib.asynccontextmanager
    async def choosing(self) -> AsyncIterator[None]:
        """While a client starts or stops a run: who has the policies stays as it is, but for the block's own start.

        Where the store fails, or the client gives up, the run may be on record as running, or as standing, all the same:
        then it is started, or its watchers are told.
        """
        try:
            async with self._choosing:
                yield
        except (StoreUnavailableError, asyncio.CancelledError):
            self._wake(in_doubt=True)
            raise

    async def go_on(self, record: RunRecord, config: RunConfig, data: TrainingData) -> None:
        """Start a run that began earlier, after telling what is no longer as it was then. Within `choosing`."""
        told = await what_changed(record, config, data, require(self._engines))
        if told is not None:
            await self._records.tell(record.run_id, told)
        await self.start(record, config, data)

    async def start(self, record: RunRecord, config: RunConfig, data: TrainingData) -> None:
        """Give the policies, which are free, to a run that is on record as running. Within `choosing`."""
        engines = require(self._engines)
        events = await self._records.events(record.run_id)
        events.begin()
        began = origin_of(record.provenance)
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
            None
            if held_out is None
            else Validation(self._jobs, record.run_id, config, held_out, events, self._database),
            fork,
            None if fork is None or fork.queue is None else TaskQueue.from_json(fork.queue),
            record.acknowledged_step,
            self._patience_seconds,
            self._listener,
        )
        # In one go with its being under way: from here on it is told by `tell`.
        standing = self._standing()
        self._active = ActiveRun(record.run_id, loop, events, self._database, self._records, standing, self._freed)

    async def stop(self, record: RunRecord, state: RunState, reason: str) -> RunRecord:
        """Have a run that is not to go on be `state`, once its loop, if it has one, has ended."""
        active = self._active_as(record.run_id)
        if active is None:
            # One that is being started just now has its loop after this.
            async with self.choosing():
                active = self._active_as(record.run_id)
                if active is None:
                    now = await self._records.get(record.run_id)
                    if now.state is record.state:
                        await self._records.set_state(record.run_id, state, reason)
                        await (await self._records.events(record.run_id)).end()
                    return await self._records.get(record.run_id)
        await active.stop(state, reason)
        return await self._records.get(record.run_id)

    def tell(self, condition: training_pb2.Condition) -> bool:
        """Put a condition that is not of its own making into the events of the run that is under way, as soon as the store
        takes it. False where none is."""
        if self._active is None:
            return False
        task = asyncio.create_task(self._told(self._active, condition), name="tells")
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)
        return True

    @staticmethod
    async def _told(active: ActiveRun, condition: training_pb2.Condition) -> None:
        try:
            await active.tell(condition)
        except Unavailable as error:
            logger.warning("a run could not be told", reason=condition.reason, why=str(error))

    def on_start(self, standing: Callable[[], Sequence[training_pb2.Condition]]) -> None:
        """Have each run that starts told of what holds then and was told when it was not under way.

        Args:
            standing: called on the event loop; must not block.
        """
        self._standing = standing

    def on_idle(self, idle: Callable[[], None]) -> None:
        """Have it told when a run has ended or paused and no queued one follows: not between one run and the next.

        Args:
            idle: called on the event loop; must not block.
        """
        self._idle = idle

    async def close(self) -> None:
        """End the loop where it stands; the store knows how to go on."""
        self._closed = True
        tasks = [*self._starting, *self._telling, *([] if self._active is None else [self._active.task])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _active_as(self, run_id: str) -> ActiveRun | None:
        """The run that is under way, if it is this one."""
        return self._active if self._active is not None and self._active.run_id == run_id else None

    async def _start_interrupted(self) -> None:
        """Start what is on record as running."""
        for record in await runs_in_state(self._database, RunState.RUNNING):
            if self._active is None:
                logger.info("resuming", run=record.run_id)
                await self._start_or_pause(record)
            elif record.run_id != self._active.run_id:
                await self._records.set_state(
                    record.run_id,
                    RunState.QUEUED,
                    f"waits for run {self._active.run_id}, which trains these policies",
                )

    async def _start_queued(self) -> None:
        """Start the oldest queued run, or the next one that can be, if the policies are free."""
        for record in await runs_in_state(self._database, RunState.QUEUED):
            if self._active is not None:
                return
            await self._records.set_state(record.run_id, RunState.RUNNING, "")
            await self._start_or_pause(record)

    async def _start_or_pause(self, record: RunRecord) -> None:
        """Start a run that is to run; one whose policies or data cannot be had is paused by name."""
        try:
            check_policies(record, require(self._engines).policies)
            config = await asyncio.to_thread(parse, record.config)
            data = await same_data(record, config)
        except (InvalidArgument, FailedPrecondition) as error:
            await self._records.set_state(record.run_id, RunState.PAUSED, f"{error}; mend it and resume the run")
            await (await self._records.events(record.run_id)).end()
            return
        await self.go_on(record, config, data)

    def _freed(self) -> None:
        self._active = None
        self._wake()

    def _wake(self, in_doubt: bool = False) -> None:
        """The policies are free: start the next queued run.

        Args:
            in_doubt: the store failed, and may have a run as running that nobody started, or as standing and nobody told.
        """

        async def start(in_doubt: bool) -> None:
            while True:
                try:
                    async with self._choosing:
                        if in_doubt:
                            await self._records.end_standing()
                            await self._start_interrupted()
                        await self._start_queued()
                        # Where the store is another's, its runs go on there.
                        if self._active is None and not self._database.lost.is_set():
                            self._idle()
                        return
                except StoreUnavailableError as error:
                    logger.warning("waiting for the store, to start what is to run", error=str(error))
                    in_doubt = True
                    await asyncio.sleep(STORE_PAUSE_SECONDS)

        if not self._closed:
            task = asyncio.create_task(start(in_doubt), name="start-queued")
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)
