"""Stand-ins for `Runs` and `EvalJobs`: no step, no item, no service. Their states are rows of the real store, and change as
the real ones' do, or when a test says so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from troupe.v1 import evaluation_pb2
from troupe_contracts.errors import FailedPrecondition, NotFound, Unavailable
from troupe_orchestrator.evaluation.job_log import first_event
from troupe_orchestrator.run_config import dump_run_config
from troupe_orchestrator.store import evals
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.evals import EvalRecord, EvalState
from troupe_orchestrator.store.runs import RunRecord, RunState, create_run, get_run, runs_in_state, set_run_state
from troupe_orchestrator.training.inputs import parse


class StandInRuns:
    """One run at a time holds the policies."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.changed: Callable[[str], None] = lambda run_id: None
        self.created: list[str] = []
        """Ids of the runs that were made, in order."""
        self.resumed: list[str] = []
        self.away = False
        """A service does not answer."""
        self.waits: dict[str, str] = {}
        """What runs wait for."""
        self._turn = asyncio.Lock()
        """As the real ones': one at a time starts or ends."""

    async def create(self, run_id: str, config_text: str, queue: bool = False) -> RunRecord:
        config = parse(config_text)
        if self.away:
            raise Unavailable("executor: the stand-in is away")
        async with self._turn:
            existing = await get_run(self._database, run_id)
            effective = dump_run_config(config)
            if existing is not None:
                if existing.config != effective:
                    raise FailedPrecondition(run_id, "exists with another config; choose another run_id")
                return existing
            holder = await self._holder()
            if holder and not queue:
                raise FailedPrecondition(holder, f"run {holder} trains these policies")
            state = RunState.QUEUED if holder else RunState.RUNNING
            record = RunRecord(run_id, state, "", effective, config.steps, "/none", time.time(), None)
            await create_run(self._database, record, {})
            self.created.append(run_id)
            self.changed(run_id)
            return record

    async def pause(self, run_id: str) -> RunRecord:
        async with self._turn:
            record = await self.get(run_id)
            if record.state is not RunState.RUNNING:
                raise FailedPrecondition(run_id, f"is {record.state}, only a running run can be paused")
            return await self._set(run_id, RunState.PAUSED, "paused by request; resume it")

    async def resume(self, run_id: str, generation: int | None = None) -> RunRecord:
        async with self._turn:
            record = await self.get(run_id)
            if record.state not in (RunState.PAUSED, RunState.FAILED):
                raise FailedPrecondition(run_id, f"is {record.state}, only a paused or failed run can be resumed")
            holder = await self._holder()
            if holder:
                raise FailedPrecondition(holder, f"run {holder} trains these policies")
            await set_run_state(self._database, run_id, RunState.RUNNING, "", 0, generation)
            self.resumed.append(run_id)
            self.changed(run_id)
            return await self.get(run_id)

    async def cancel(self, run_id: str) -> RunRecord:
        async with self._turn:
            record = await self.get(run_id)
            if record.state in (RunState.SUCCEEDED, RunState.CANCELLED):
                return record
            return await self._set(run_id, RunState.CANCELLED, "cancelled by request")

    def waits_for(self, run_id: str) -> str:
        """What a test says: no service is asked for anything."""
        return self.waits.get(run_id, "")

    async def get(self, run_id: str) -> RunRecord:
        record = await get_run(self._database, run_id)
        if record is None:
            raise NotFound("run", run_id)
        return record

    async def becomes(self, run_id: str, state: RunState, reason: str = "") -> RunRecord:
        """A run that is running ends or stops by itself."""
        async with self._turn:
            record = await self.get(run_id)
            return await self._set(run_id, state, reason) if record.state is RunState.RUNNING else record

    async def _set(self, run_id: str, state: RunState, reason: str) -> RunRecord:
        """A run ends or stops, and the next one begins."""
        await set_run_state(self._database, run_id, state, reason)
        self.changed(run_id)
        if not await self._holder():
            for queued in (await runs_in_state(self._database, RunState.QUEUED))[:1]:
                await set_run_state(self._database, queued.run_id, RunState.RUNNING, "")
                self.changed(queued.run_id)
        return await self.get(run_id)

    async def _holder(self) -> str:
        running = await runs_in_state(self._database, RunState.RUNNING)
        return running[0].run_id if running else ""


class StandInJobs:
    """Jobs whose items end when a test says so."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.changed: Callable[[str], None] = lambda job_id: None
        self.requests: list[evaluation_pb2.CreateEvalJobRequest] = []

    async def create(self, request: evaluation_pb2.CreateEvalJobRequest) -> EvalRecord:
        kept = evaluation_pb2.CreateEvalJobRequest()
        kept.CopyFrom(request)
        kept.ClearField("dataset")
        record = EvalRecord(
            job_id=request.job_id,
            state=EvalState.RUNNING,
            reason="",
            request=kept.SerializeToString(),
            dataset_file="/none",
            problems=request.dataset.count(b"\n"),
            errors=(),
            versions={},
            summary=None,
            created_at=time.time(),
            ended_at=None,
        )
        await evals.create_job(self._database, record, first_event(record))
        self.requests.append(request)
        self.changed(request.job_id)
        return record

    async def resume(self, job_id: str) -> EvalRecord:
        if await evals.get_job(self._database, job_id) is None:
            raise NotFound("eval job", job_id)
        raise AssertionError(f"a call reached {job_id}, which an object asked for")

    async def cancel(self, job_id: str) -> EvalRecord:
        record = await evals.get_job(self._database, job_id)
        if record is None:
            raise NotFound("eval job", job_id)
        if record.state is EvalState.RUNNING:
            await self.becomes(job_id, EvalState.CANCELLED, "cancelled by request")
        return await evals.get_job(self._database, job_id) or record

    async def becomes(
        self, job_id: str, state: EvalState, reason: str = "", summary: evaluation_pb2.EvalSummary | None = None
    ) -> None:
        """A job ends."""
        stored = None if summary is None else summary.SerializeToString()
        await evals.end_job(self._database, job_id, state, reason, (2, b""), stored)
        self.changed(job_id)
