"""Runs on record: what each is, and the log of its events. A change of state is stored with the event that tells of it."""

from collections.abc import Sequence

from google.protobuf.message import Message
from troupe.v1 import training_pb2
from troupe_contracts.errors import NotFound

from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.runs import RunRecord, RunState, get_run, set_run_state
from troupe_orchestrator.store.steps import committed_steps
from troupe_orchestrator.training.events import EventLog
from troupe_orchestrator.training.listener import NOBODY, RunListener


class RunRecords:
    """All runs of a store. There is one log of events for each, opened when it is first asked for."""

    def __init__(self, database: Database, listener: RunListener = NOBODY) -> None:
        """Runs of a store.

        Args:
            listener: told of their events.
        """
        self._database = database
        self._listener = listener
        self._logs: dict[str, EventLog] = {}

    async def get(self, run_id: str) -> RunRecord:
        """One run.

        Raises:
            NotFound: there is none with this id.
        """
        record = await get_run(self._database, run_id)
        if record is None:
            raise NotFound("run", run_id)
        return record

    async def events(self, run_id: str) -> EventLog:
        """The run's events."""
        record = await self.get(run_id)
        if run_id not in self._logs:
            opened = await EventLog.open(self._database, run_id, self._listener)
            # Of two who open it at once, both get the first's: there is one writer.
            log = self._logs.setdefault(run_id, opened)
            # A run that is under way has its log: whoever started it asked for it, and begins it after this.
            if log is opened and record.state is not RunState.QUEUED:
                await log.end()
        return self._logs[run_id]

    async def tell(self, run_id: str, event: Message) -> None:
        """Put an event that is of no step's making into the run's events, after its newest committed step."""
        step = await committed_steps(self._database, run_id)
        await (await self.events(run_id)).append(step, event)

    async def set_state(
        self,
        run_id: str,
        state: RunState,
        reason: str,
        acknowledged_step: int | None = None,
        generation: int | None = None,
        conditions: Sequence[training_pb2.Condition] = (),
    ) -> None:
        """Record what became of a run, and tell it. The arguments are those of `store.runs.set_run_state`.

        A run that is in this state is left as it is: an earlier call recorded it, and was not answered.

        Args:
            conditions: that led there, told before it.
        """
        events = await self.events(run_id)
        if (await self.get(run_id)).state is state:
            await events.reread()
            return
        step = await committed_steps(self._database, run_id)
        changed = training_pb2.StateChanged(
            state=training_pb2.RunState.Value(f"RUN_STATE_{state.upper()}"), reason=reason
        )
        async with events.storing(step, *conditions, changed) as stored:
            await set_run_state(self._database, run_id, state, reason, acknowledged_step, generation, stored)
            if state is RunState.RUNNING:
                # Who watches from now on waits for its loop.
                events.begin()

    async def end_standing(self) -> None:
        """End what watchers of runs that stand are told: that a run does may be on record without an answer."""
        for run_id, log in list(self._logs.items()):
            if not log.ended and (await self.get(run_id)).state not in (RunState.QUEUED, RunState.RUNNING):
                await log.reread()
                await log.end()

    async def close(self) -> None:
        """End what watchers are told."""
        for log in self._logs.values():
            await log.end()
