"""Runs behind TrainingRuns."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import yaml
from troupe.v1 import training_pb2
from troupe_contracts.errors import InvalidArgument

from troupe_orchestrator.custom_resources.backing import Shown
from troupe_orchestrator.custom_resources.decisions import State
from troupe_orchestrator.custom_resources.messages import fields_of, message_of
from troupe_orchestrator.custom_resources.resources import TRAINING_RUN, Resource
from troupe_orchestrator.run_config import Trains
from troupe_orchestrator.stages import StepPlan
from troupe_orchestrator.store.database import Database
from troupe_orchestrator.store.run_events import newest_events
from troupe_orchestrator.store.runs import RunRecord, RunState, get_run
from troupe_orchestrator.store.step_outcomes import stage_ends, step_metrics, step_versions
from troupe_orchestrator.store.summaries import get_summary
from troupe_orchestrator.training.fork import last_step_of, plan_of
from troupe_orchestrator.training.inputs import parse
from troupe_orchestrator.training.messages import run_message
from troupe_orchestrator.training.record import origin_of

STATUS_FIELDS: Final = (
    "run_id", "committed_steps", "total_steps", "stage", "trains", "create_time", "end_time",
)  # fmt: skip
"""Of troupe.v1.Run."""
NOT_IN_SPEC: Final = frozenset({"run_id", "config"})
"""Fields of CreateRunRequest that a spec says in another way: the object's uid, and keys instead of YAML."""
_EVENTS_READ: Final = 8
"""Of the newest ones, in which the cause of a pause is looked for."""


class RunControl(Protocol):
    """As much of `training.runs.Runs` as objects need."""

    async def create(self, run_id: str, config_text: str, queue: bool = False) -> RunRecord:
        """See Runs."""

    async def pause(self, run_id: str) -> RunRecord:
        """See Runs."""

    async def resume(self, run_id: str, generation: int | None = None) -> RunRecord:
        """See Runs."""

    async def cancel(self, run_id: str) -> RunRecord:
        """See Runs."""

    def waits_for(self, run_id: str) -> str:
        """See Runs."""


def create_run_request(uid: str, spec: Mapping[str, Any]) -> training_pb2.CreateRunRequest:
    """The call that a TrainingRun stands for.

    Raises:
        InvalidArgument: the spec says something that no call can.
    """
    rest = {key: value for key, value in spec.items() if key not in ("config", "desiredState")}
    request = message_of(rest, training_pb2.CreateRunRequest(queue=True))
    request.run_id = uid
    request.config = yaml.safe_dump(spec.get("config") or {}, sort_keys=False)
    return request


class RunsBehindObjects:
    """See `backing.Backing`."""

    kind = TRAINING_RUN

    def __init__(self, runs: RunControl, database: Database) -> None:
        self._runs = runs
        self._database = database

    async def state(self, uid: str) -> State:
        record = await get_run(self._database, uid)
        return None if record is None else record.state

    async def create(self, resource: Resource) -> None:
        request = create_run_request(resource.uid, resource.spec)
        await self._runs.create(request.run_id, request.config, request.queue)

    async def pause(self, uid: str) -> None:
        await self._runs.pause(uid)

    async def resume(self, uid: str, generation: int) -> None:
        await self._runs.resume(uid, generation)

    async def cancel(self, uid: str) -> None:
        await self._runs.cancel(uid)

    async def show(self, uid: str) -> Shown | None:
        summary = await get_summary(self._database, uid)
        if summary is None:
            return None
        record, message = summary.run, run_message(summary)
        committed = message.committed_steps
        ended = await stage_ends(self._database, uid)
        metrics = await step_metrics(self._database, uid, committed)
        versions = await step_versions(self._database, uid, committed)
        plan, trained = await asyncio.to_thread(_plans, record, committed if metrics else None, ended)
        if plan is not None and plan.step > committed:
            message.stage, message.trains = plan.stage, plan.trains.value
        stopped = record.state in (RunState.PAUSED, RunState.FAILED)
        return Shown(
            state=record.state,
            message=self._runs.waits_for(uid) if record.state is RunState.RUNNING else record.reason,
            cause=await self._cause(uid, message.state) if stopped else "",
            fields={
                **fields_of(message, STATUS_FIELDS),
                "display": {
                    "stage": "" if plan is None else f"{plan.stage} {plan.trains}",
                    "step": f"{committed}/{message.total_steps}",
                    "policy": ",".join(f"{policy}@{version}" for policy, version in sorted(versions.items())),
                    "reward": _reward(metrics, trained),
                },
            },
        )

    async def _cause(self, uid: str, state: int) -> str:
        """The condition that a run was stopped by: the last that it told before it was. That it is stopped is told last."""
        events = [
            training_pb2.RunEvent.FromString(payload)
            for payload in await newest_events(self._database, uid, _EVENTS_READ)
        ]
        stops = [number for number, event in enumerate(events) if event.HasField("state_changed")]
        if stops and events[stops[-1]].state_changed.state == state:
            events = events[: stops[-1]]
        return events[-1].condition.reason if events else ""


def _plans(record: RunRecord, committed: int | None, ended: Sequence[int]) -> tuple[StepPlan | None, Trains | None]:
    """The plan of the step under way or of the next one, after the last step that step's; and what the last committed step
    trained, if there is one. Neither of a config that is refused by now.
    """
    try:
        config = parse(record.config)
    except InvalidArgument:
        return None, None
    began = origin_of(record.provenance)
    fork = None if began is None else began.fork
    if committed is None:
        return plan_of(config, fork, 1 if fork is None else fork.step + 1, ended), None
    following = min(committed + 1, last_step_of(config, fork, ended))
    return plan_of(config, fork, following, ended), plan_of(config, fork, committed, ended).trains


def _reward(metrics: Mapping[str, float], trained: Trains | None) -> str:
    """Mean reward of the role that the last committed step trained, the executor's where both; empty before the first."""
    reward = metrics.get("reward_designer" if trained is Trains.DESIGNER else "reward_executor")
    return "" if reward is None else f"{reward:.3f}"
