"""The run that has the policies: its loop in a task, asked to stop or cut off, and how it ended put on record.

However the loop ends, it is recorded, however long the store is away: nobody else would.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence

import structlog
from sqlalchemy.exc import SQLAlchemyError
from troupe.v1 import training_pb2

from troupe_orchestrator.store.database import Database, LeaseLostError, StoreUnavailableError
from troupe_orchestrator.store.runs import RunState
from troupe_orchestrator.store.steps import last_step
from troupe_orchestrator.training.endings import ending_of
from troupe_orchestrator.training.events import EventLog
from troupe_orchestrator.training.run_loop import RunLoop
from troupe_orchestrator.training.run_records import RunRecords

logger = structlog.get_logger()

STORE_PAUSE_SECONDS = 1.0


class ActiveRun:
    """One run that is under way, until its loop has ended and that is on record."""

    def __init__(
        self,
        run_id: str,
        loop: RunLoop,
        events: EventLog,
        database: Database,
        records: RunRecords,
        standing: Sequence[training_pb2.Condition],
        freed: Callable[[], None],
    ) -> None:
        """Start the loop.

        Args:
            events: of this run; they end with it.
            standing: conditions that hold now, to be told first.
            freed: called once the run has ended and the policies are free.
        """
        self.run_id = run_id
        self._loop = loop
        self._events = events
        self._database = database
        self._records = records
        self._freed = freed
        self._stopping: tuple[RunState, str] | None = None
        """What the run is to be once its loop has ended, and why; None is what the loop itself says."""
        self._in_loop = False
        """What may be cut short: not how the loop ended, nor a task that has not begun, which would never record it."""
        self._outage: training_pb2.Condition | None = None
        """Of the store, met when the end was to be recorded."""
        self.task = asyncio.create_task(self._supervise(standing), name=f"run-{run_id}")

    @property
    def waits_for(self) -> str:
        """What the run waits for now, with the remedy; empty while it does something."""
        if self._outage is not None:
            return f"has ended, which waits to be recorded: {self._outage.message}"
        return self._loop.waits_for

    async def tell(self, condition: training_pb2.Condition) -> None:
        """Put a condition that is not of the run's making into its events."""
        record = await last_step(self._database, self.run_id)
        await self._events.append(0 if record is None else record.step, condition)

    async def stop(self, state: RunState, reason: str) -> None:
        """Have the loop end, at the next step boundary or, where that is now or the run is cancelled, at once; then the run
        is `state`.

        Returns when how it ended is on record.
        """
        # Once: a second time it would cut off what the loop does when it is cut off.
        if not self._cancelled:
            self._stopping = (state, reason)
            self._loop.stop()
            if self._in_loop and (self._cancelled or self._loop.waits_for_its_turn):
                self.task.cancel()
        # The loop records how it ended. A caller whose deadline passes first must not cut its step short.
        await asyncio.wait([self.task])

    async def in_line(self) -> None:
        """Returns once the loop has asked for the policies, or has ended."""
        waiting = asyncio.create_task(self._loop.in_line.wait())
        await asyncio.wait([self.task, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()

    @property
    def _cancelled(self) -> bool:
        return self._stopping is not None and self._stopping[0] is RunState.CANCELLED

    async def _supervise(self, standing: Sequence[training_pb2.Condition]) -> None:
        """Tell what holds, run the loop and record how it ended."""
        try:
            done = False
            if not self._cancelled:
                self._in_loop = True
                try:
                    with contextlib.suppress(StoreUnavailableError):  # which the loop waits for, and tells of
                        for condition in standing:
                            await self.tell(condition)
                    done = await self._loop.run()
                finally:
                    self._in_loop = False
            if done:
                await self._ended(RunState.SUCCEEDED, "")
            else:
                await self._stopped()
        except LeaseLostError:
            raise
        except asyncio.CancelledError:
            if self._stopping is None:
                raise
            await self._stopped()
        except Exception as error:  # the boundary of a run: whatever ends it is recorded with it
            await self._failed(error)
        finally:
            await self._events.end()
            self._freed()

    async def _failed(self, error: BaseException) -> None:
        ending = ending_of(error)
        logger.error(
            "run ended", run=self.run_id, state=ending.state, reason=ending.reason,
            exc_info=error if ending.state is RunState.FAILED else None,
        )  # fmt: skip
        await self._ended(ending.state, ending.reason, ending.condition)

    async def _stopped(self) -> None:
        assert self._stopping is not None
        await self._ended(*self._stopping)

    async def _ended(self, state: RunState, reason: str, condition: training_pb2.Condition | None = None) -> None:
        """Record what the run is now that its loop has ended."""
        conditions = [] if condition is None else [condition]
        refused = ""
        while True:
            if state is not RunState.SUCCEEDED and self._cancelled and self._stopping is not None:
                state, reason = self._stopping
            try:
                return await self._records.set_state(self.run_id, state, refused or reason, conditions=conditions)
            except (StoreUnavailableError, SQLAlchemyError) as error:
                if self._outage is None and (outage := ending_of(error).condition) is not None:
                    self._outage = outage
                    conditions.insert(0, outage)
                if isinstance(error, StoreUnavailableError):
                    logger.warning(
                        "waiting for the store, to record how a run ended", run=self.run_id, error=str(error)
                    )
                else:
                    # The store is there and refuses what it is told: the state has to be told, whatever the words are.
                    logger.error("the store refuses how a run ended", run=self.run_id, reason=reason, error=str(error))
                    if refused:
                        conditions.clear()
                    refused = f"why could not be recorded ({type(error).__name__}): the orchestrator's log has it"
                await asyncio.sleep(STORE_PAUSE_SECONDS)
