"""The runs of this orchestrator: created, resumed after a restart, paused, cancelled. Owns one task per running run."""

import asyncio
import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog
from troupe.v1 import training_pb2
from troupe_contracts.errors import FailedPrecondition, InvalidArgument, NotFound, describe

from troupe_orchestrator.credit.registry import ESTIMATORS
from troupe_orchestrator.datasets.loading import DatasetError, load
from troupe_orchestrator.datasets.task import Task
from troupe_orchestrator.engines import Engines, require
from troupe_orchestrator.fleet import NoReplicasError
from troupe_orchestrator.run_config import ConfigError, RunConfig, dump_run_config, parse_run_config
from troupe_orchestrator.store import runs as store
from troupe_orchestrator.store.database import Database, LeaseLostError
from troupe_orchestrator.store.runs import RunRecord, RunState
from troupe_orchestrator.training.events import EventLog
from troupe_orchestrator.training.learner import LearnerError
from troupe_orchestrator.training.queue import NoTasksError
from troupe_orchestrator.training.run_loop import EverythingDroppedError, RunLoop
from troupe_orchestrator.training.weights import WeightSyncError

logger = structlog.get_logger()

_RUN_ID = re.compile(r"^[a-z0-9][a-z0-9-]{0,62}$")
_FIXABLE = (
    LearnerError,
    WeightSyncError,
    EverythingDroppedError,
    NoTasksError,
    NoReplicasError,
    grpc.RpcError,
    OSError,
)
"""What an operator can mend, and then resume the run: it is paused, not failed."""


@dataclass(slots=True)
class _Active:
    loop: RunLoop
    task: asyncio.Task[None]
    stopping: tuple[RunState, str] | None = None
    """What the run is to be once its loop has ended, and why; None is what the loop itself says."""


class Runs:
    """All runs of a store."""

    def __init__(
        self,
        database: Database,
        data_dir: Path,
        engines: Engines | None,
        boundary: asyncio.Lock,
    ) -> None:
        self._database = database
        self._data_dir = data_dir
        self._engines = engines
        self._boundary = boundary
        self._logs: dict[str, EventLog] = {}
        self._active: dict[str, _Active] = {}
        self._creating = asyncio.Lock()

    async def resume_interrupted(self) -> None:
        """Go on with the run that was running when the orchestrator before this one ended."""
        if not require(self._engines).policies:
            return
        for record in await store.list_runs(self._database, limit=1000):
            if record.state is RunState.RUNNING:
                logger.info("resuming", run=record.run_id)
                try:
                    tasks = await asyncio.to_thread(_load_tasks, _parse(record.config))
                except InvalidArgument as error:
                    await self._set_state(record.run_id, RunState.PAUSED, f"{error}; mend it and resume the run")
                    continue
                await self._launch(record, tasks)

    async def create(self, run_id: str, config_text: str) -> RunRecord:
        """Validate a config and start its run.

        Raises:
            InvalidArgument: the config or the id cannot be used; each key is named.
            FailedPrecondition: another run trains these policies, or the id belongs to a run with another config.
        """
        config = _parse(config_text)
        run_id = run_id or f"{config.name}-{uuid.uuid4().hex[:6]}"
        if not _RUN_ID.match(run_id):
            raise InvalidArgument("run_id", f"{run_id!r} must match {_RUN_ID.pattern}")
        # One at a time: two calls that come together must not both find the policies free.
        async with self._creating:
            return await self._create(run_id, config)

    async def _create(self, run_id: str, config: RunConfig) -> RunRecord:
        effective = dump_run_config(config)
        existing = await store.get_run(self._database, run_id)
        if existing is not None:
            if existing.config != effective:
                raise FailedPrecondition(run_id, "exists with another config; choose another run_id")
            return existing
        self._check_free()
        tasks = await asyncio.to_thread(_load_tasks, config)
        folder = (self._data_dir / "runs" / run_id).resolve()
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        record = RunRecord(
            run_id=run_id,
            state=RunState.RUNNING,
            reason="",
            config=effective,
            total_steps=config.steps,
            folder=str(folder),
            created_at=time.time(),
            ended_at=None,
        )
        await store.create_run(self._database, record, {})
        await self._launch(record, tasks)
        return record

    async def get(self, run_id: str) -> RunRecord:
        """One run.

        Raises:
            NotFound: there is none with this id.
        """
        record = await store.get_run(self._database, run_id)
        if record is None:
            raise NotFound("run", run_id)
        return record

    async def pause(self, run_id: str) -> RunRecord:
        """Stop a run at the next step boundary."""
        record = await self.get(run_id)
        if record.state is not RunState.RUNNING:
            raise FailedPrecondition(run_id, f"is {record.state}, only a running run can be paused")
        return await self._stop(record, RunState.PAUSED, "paused by request; resume it")

    async def resume(self, run_id: str) -> RunRecord:
        """Go on with a paused or failed run."""
        record = await self.get(run_id)
        if record.state not in (RunState.PAUSED, RunState.FAILED):
            raise FailedPrecondition(run_id, f"is {record.state}, only a paused or failed run can be resumed")
        async with self._creating:
            self._check_free()
            # First, since a run whose file is gone has to stay as it is.
            tasks = await asyncio.to_thread(_load_tasks, _parse(record.config))
            await self._set_state(run_id, RunState.RUNNING, "")
            record = await self.get(run_id)
            await self._launch(record, tasks)
        return record

    async def cancel(self, run_id: str) -> RunRecord:
        """End a run; its committed steps stay."""
        record = await self.get(run_id)
        if record.state not in (RunState.RUNNING, RunState.PAUSED, RunState.FAILED):
            return record
        return await self._stop(record, RunState.CANCELLED, "cancelled by request")

    async def events(self, run_id: str) -> EventLog:
        """The run's events."""
        await self.get(run_id)
        if run_id not in self._logs:
            self._logs[run_id] = await EventLog.open(self._database, run_id)
            if run_id not in self._active:
                await self._logs[run_id].end()
        return self._logs[run_id]

    async def close(self) -> None:
        """End the loops where they stand; the store knows how to go on."""
        for active in self._active.values():
            active.task.cancel()
        await asyncio.gather(*(active.task for active in self._active.values()), return_exceptions=True)
        for log in self._logs.values():
            await log.end()

    def _check_free(self) -> None:
        """Nothing else trains, and there is something to train."""
        if not require(self._engines).policies:
            raise FailedPrecondition(
                "learner", "this orchestrator was started without a learner; set TROUPE_LEARNER to train"
            )
        if self._active:
            holder = next(iter(self._active))
            raise FailedPrecondition(
                holder,
                f"run {holder} trains these policies; wait for it, or pause or cancel it first (`troupe cancel {holder}`)",
            )

    async def _launch(self, record: RunRecord, tasks: Sequence[Task]) -> None:
        engines = require(self._engines)
        events = await self.events(record.run_id)
        events.begin()
        loop = RunLoop(
            record.run_id,
            _parse(record.config),
            tasks,
            Path(record.folder),
            self._database,
            events,
            engines.services,
            engines.policies,
            self._boundary,
        )
        task = asyncio.create_task(self._supervise(record.run_id, loop, events), name=f"run-{record.run_id}")
        self._active[record.run_id] = _Active(loop, task)

    async def _supervise(self, run_id: str, loop: RunLoop, events: EventLog) -> None:
        """Run the loop and record how it ended."""
        try:
            if await loop.run():
                await self._set_state(run_id, RunState.SUCCEEDED, "")
            else:
                await self._stopped(run_id)
        except LeaseLostError:
            raise
        except asyncio.CancelledError:
            if self._active[run_id].stopping is None:
                raise
            await self._stopped(run_id)
        except BaseExceptionGroup as group:
            await self._failed(run_id, _leaf(group))
        except Exception as error:  # the boundary of a run: whatever ends it is recorded with it
            await self._failed(run_id, error)
        finally:
            del self._active[run_id]
            await events.end()

    async def _failed(self, run_id: str, error: BaseException) -> None:
        text = describe(error) if isinstance(error, grpc.RpcError) else str(error)
        if isinstance(error, _FIXABLE):
            logger.error("run paused", run=run_id, error=text)
            await self._set_state(run_id, RunState.PAUSED, f"{text}; mend it and resume the run")
        else:
            logger.error("run failed", run=run_id, exc_info=error)
            await self._set_state(run_id, RunState.FAILED, f"{type(error).__name__}: {text}")

    async def _stop(self, record: RunRecord, state: RunState, reason: str) -> RunRecord:
        active = self._active.get(record.run_id)
        if active is None:
            await self._set_state(record.run_id, state, reason)
        else:
            active.stopping = (state, reason)
            active.loop.stop()
            if state is RunState.CANCELLED:
                active.task.cancel()
            # The loop records how it ended. A caller whose deadline passes first must not cut its step short.
            await asyncio.wait([active.task])
        return await self.get(record.run_id)

    async def _stopped(self, run_id: str) -> None:
        stopping = self._active[run_id].stopping
        assert stopping is not None
        await self._set_state(run_id, *stopping)

    async def _set_state(self, run_id: str, state: RunState, reason: str) -> None:
        await store.set_run_state(self._database, run_id, state, reason)
        step = await store.committed_steps(self._database, run_id)
        number = training_pb2.RunState.Value(f"RUN_STATE_{state.upper()}")
        events = await self.events(run_id)
        await events.append(step, training_pb2.StateChanged(state=number, reason=reason))


def _leaf(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _leaf(first) if isinstance(first, BaseExceptionGroup) else first


def _parse(text: str) -> RunConfig:
    try:
        config = parse_run_config(text)
    except ConfigError as error:
        raise InvalidArgument.every((f"config.{key}", message) for key, message in error.problems) from error
    if ESTIMATORS.find(config.credit.estimator).needs_values:
        raise InvalidArgument(
            "config.credit.estimator",
            f"{config.credit.estimator} needs learned values of task prompts, which no learner serves yet: "
            "choose hierarchical, leave_one_out or agent_turn",
        )
    return config


def _load_tasks(config: RunConfig) -> list[Task]:
    """The training tasks. A run does not start on a file with bad lines: they are all named."""
    path = config.dataset.train
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidArgument("config.dataset.train", f"{path}: {error.strerror}") from error
    except ValueError as error:  # a path with a null byte
        raise InvalidArgument("config.dataset.train", f"{str(path)!r}: {error}") from error
    try:
        dataset = load(path.name, content, config.dataset.format, config.dataset.grader)
    except DatasetError as error:
        raise InvalidArgument("config.dataset.train", str(error)) from error
    if dataset.errors:
        raise InvalidArgument.every(
            ("config.dataset.train", f"{bad.file}:{bad.line}: {bad.message}") for bad in dataset.errors[:20]
        )
    return list(dataset.tasks[: config.dataset.limit])
