"""What is asked of runs: that they be created, forked, planned, paused, resumed, cancelled.

Nothing is kept here: what a run is is on record (`run_records`), and `run_queue` knows which one is under way.
"""

import asyncio
import re
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from troupe.v1 import training_pb2
from troupe_contracts.errors import FailedPrecondition, InvalidArgument

from troupe_orchestrator.engines import Engines, require
from troupe_orchestrator.evaluation.jobs import EvalJobs
from troupe_orchestrator.run_config import MAX_CONFIG_CHARACTERS, RunConfig, dump_run_config
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.runs import RunRecord, RunState, create_run, get_run
from troupe_orchestrator.store.steps import committed_steps
from troupe_orchestrator.training.fork import fork_of
from troupe_orchestrator.training.inputs import load_data, overridden, parse
from troupe_orchestrator.training.plan import PolicyDescription, describe, plan_message
from troupe_orchestrator.training.record import Fork, origin, origin_of, source_of_process
from troupe_orchestrator.training.resumption import check_policies, same_data
from troupe_orchestrator.training.run_queue import RunQueue
from troupe_orchestrator.training.run_records import RunRecords

_RUN_ID = re.compile(r"^[a-z0-9][a-z0-9-]{0,62}$")


class Runs:
    """Requests about the runs of a store."""

    def __init__(
        self,
        database: Database,
        data_dir: Path,
        engines: Engines | None,
        jobs: EvalJobs,
        records: RunRecords,
        queue: RunQueue,
    ) -> None:
        self._database = database
        self._data_dir = data_dir
        self._engines = engines
        self._jobs = jobs
        self._records = records
        self._queue = queue

    async def create(self, run_id: str, config_text: str, queue: bool = False) -> RunRecord:
        """Validate a config and start its run, or queue it.

        Raises:
            InvalidArgument: the config or the id cannot be used; each key is named.
            FailedPrecondition: another run trains these policies, or the id belongs to a run with another config.
        """
        config = await asyncio.to_thread(parse, config_text)
        # One at a time: two calls that come together must not both find the policies free.
        async with self._queue.choosing():
            return await self._create(_named(run_id, config.name), config, None, queue)

    async def fork(self, parent_id: str, step: int, overrides: str, run_id: str, queue: bool = False) -> RunRecord:
        """Start a run from the weights that another had after one of its steps.

        Raises:
            NotFound: there is no such run.
            InvalidArgument: the overrides or the id cannot be used.
            FailedPrecondition: the step cannot be forked, the run trains other policies, or what `create` raises it for.
        """
        parent = await self._records.get(parent_id)
        check_policies(parent, require(self._engines).policies)
        config, given = await asyncio.to_thread(overridden, parent.config, overrides)
        if config.steps <= step:
            raise InvalidArgument(
                "config.steps",
                f"is {config.steps}: steps count from the parent's first, so a fork after step {step} needs more",
            )
        data = await asyncio.to_thread(load_data, config)
        fork = await fork_of(self._database, parent, step, config, given, data)
        async with self._queue.choosing():
            return await self._create(_named(run_id, f"{parent_id[:40]}-fork"), config, fork, queue)

    async def _create(self, run_id: str, config: RunConfig, fork: Fork | None, queue: bool) -> RunRecord:
        effective = await asyncio.to_thread(_effective, config)
        existing = await get_run(self._database, run_id)
        if existing is not None:
            before = origin_of(existing.provenance)
            if existing.config != effective or (before is not None and before.fork != fork):
                raise FailedPrecondition(run_id, "exists with another config; choose another run_id")
            return existing
        holder = self._queue.holder()
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
            await self._queue.start(record, config, data)
        return record

    async def plan(self, config_text: str, descriptions: Sequence[PolicyDescription]) -> training_pb2.RunPlan:
        """What a run with this config would take. Starts nothing.

        Args:
            descriptions: of the policies, where this orchestrator has no services to ask.

        Raises:
            InvalidArgument: the config cannot be used, or descriptions come beside services.
        """
        config = await asyncio.to_thread(parse, config_text)
        await asyncio.to_thread(_effective, config)
        data = await asyncio.to_thread(load_data, config)
        policies = list(descriptions)
        if self._engines is not None and self._engines.policies:
            if descriptions:
                raise InvalidArgument(
                    "policies", "are given, and this orchestrator has services to ask: leave them out"
                )
            policies = await describe(self._engines.policies)
        return plan_message(config, len(data.tasks), policies, data.held_out)

    def waits_for(self, run_id: str) -> str:
        """What a run waits for now, with the remedy; empty where it does something, or is not under way."""
        return self._queue.waits_for(run_id)

    async def pause(self, run_id: str) -> RunRecord:
        """Stop a run at the next step boundary."""
        record = await self._records.get(run_id)
        if record.state is not RunState.RUNNING:
            raise FailedPrecondition(run_id, f"is {record.state}, only a running run can be paused")
        return await self._queue.stop(record, RunState.PAUSED, "paused by request; resume it")

    async def resume(self, run_id: str, generation: int | None = None) -> RunRecord:
        """Go on with a paused or failed run. Whoever resumes knows which conditions hold.

        Args:
            generation: of the spec of the object that asks for it, recorded as carried out with the change of state.
        """
        record = await self._records.get(run_id)
        if record.state not in (RunState.PAUSED, RunState.FAILED):
            raise FailedPrecondition(run_id, f"is {record.state}, only a paused or failed run can be resumed")
        async with self._queue.choosing():
            holder = self._queue.holder()
            if holder is not None:
                raise FailedPrecondition(
                    holder, f"run {holder} trains these policies; wait for it, or pause or cancel it first"
                )
            # First, since a run whose policies or file are gone or are others has to stay as it is.
            check_policies(record, require(self._engines).policies)
            config = await asyncio.to_thread(parse, record.config)
            data = await same_data(record, config)
            # On record, since an orchestrator that is killed now goes on without asking again.
            acknowledged = await committed_steps(self._database, run_id)
            await self._records.set_state(run_id, RunState.RUNNING, "", acknowledged, generation)
            await self._queue.go_on(await self._records.get(run_id), config, data)
        return await self._records.get(run_id)

    async def cancel(self, run_id: str) -> RunRecord:
        """End a run, also a queued one; its committed steps stay."""
        record = await self._records.get(run_id)
        if record.state not in (RunState.SUCCEEDED, RunState.CANCELLED):
            record = await self._queue.stop(record, RunState.CANCELLED, "cancelled by request")
        # Also where an earlier call was cut off before this.
        if record.state is RunState.CANCELLED:
            await self._jobs.end_validations(run_id)
        return record


def _effective(config: RunConfig) -> str:
    """A config as it is put on record.

    Raises:
        InvalidArgument: it is too long to be read again.
    """
    text = dump_run_config(config)
    if len(text) > MAX_CONFIG_CHARACTERS:
        raise InvalidArgument(
            "config",
            f"has {len(text)} characters with every default and escape written out, the maximum is {MAX_CONFIG_CHARACTERS}",
        )
    return text


def _named(run_id: str, prefix: str) -> str:
    """The id that was asked for, or a new one.

    Raises:
        InvalidArgument: it cannot be one.
    """
    chosen = run_id or f"{prefix}-{uuid.uuid4().hex[:6]}"
    if not _RUN_ID.fullmatch(chosen):
        raise InvalidArgument("run_id", f"{chosen!r} must match {_RUN_ID.pattern}")
    return chosen
