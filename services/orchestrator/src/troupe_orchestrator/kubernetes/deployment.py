"""What the orchestrator does for the deployment that it runs in: tells runs of what keeps pods from serving, writes their
events as Events, and sets replicas by stage.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from functools import partial

import structlog
from troupe.v1 import training_pb2

from troupe_orchestrator.kubernetes.cluster import Cluster
from troupe_orchestrator.kubernetes.notices import Notice
from troupe_orchestrator.kubernetes.run_events import EventWriter, of_nobody, stage_started, told_of
from troupe_orchestrator.kubernetes.scaling import ReplicaPlan, Scaler
from troupe_orchestrator.stages import StepPlan

logger = structlog.get_logger()

IDLE = "idle"
_ENDED = frozenset(
    {
        training_pb2.RUN_STATE_SUCCEEDED,
        training_pb2.RUN_STATE_CANCELLED,
        training_pb2.RUN_STATE_PAUSED,
        training_pb2.RUN_STATE_FAILED,
    }
)


class Deployment:
    """A listener of all runs. Used on the event loop only.

    Args:
        plan: replicas by stage; None leaves them alone.
    """

    def __init__(self, cluster: Cluster, plan: ReplicaPlan | None) -> None:
        self._cluster = cluster
        self._writer = EventWriter(cluster.api, cluster.own_object, socket.gethostname())
        self._stages: dict[str, int] = {}
        loop = asyncio.get_running_loop()

        def tell(notice: Notice | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(partial(cluster.set_notice, "scaling", notice))

        self._scaler = None if plan is None else Scaler(cluster.api, plan, tell)

    def tell_notices(self, tell: Callable[[training_pb2.Condition], bool]) -> None:
        """Have `tell` told of what is wrong in the cluster; where it says that no run heard of it, an Event is written
        nevertheless."""

        def told(notice: Notice) -> None:
            condition = _condition(notice)
            if not tell(condition):
                self._writer.write(of_nobody(condition))

        self._cluster.on_notice(told)

    def in_force(self) -> list[training_pb2.Condition]:
        """What has been told and is still wrong in the cluster: for a run that starts now."""
        return [_condition(notice) for notice in self._cluster.notices_in_force()]

    def idle(self) -> None:
        """No run is under way, and none that is queued is about to be."""
        if self._scaler is not None:
            self._scaler.enter(IDLE)

    def rolls(self, run_id: str, plan: StepPlan) -> None:
        if self._stages.get(run_id) != plan.stage:
            self._stages[run_id] = plan.stage
            self._writer.write(stage_started(run_id, plan))
        if self._scaler is not None:
            self._scaler.enter(plan.trains.value)

    def stored(self, run_id: str, event: training_pb2.RunEvent) -> None:
        told = told_of(run_id, event)
        if told is not None:
            self._writer.write(told)
        if event.WhichOneof("event") == "state_changed" and event.state_changed.state in _ENDED:
            self._stages.pop(run_id, None)

    async def close(self) -> None:
        """Write and set no more."""
        if self._scaler is not None:
            self._scaler.close()
        await asyncio.to_thread(self._writer.close)


def _condition(notice: Notice) -> training_pb2.Condition:
    return training_pb2.Condition(reason=notice.reason, message=notice.message, remedy=notice.remedy)
