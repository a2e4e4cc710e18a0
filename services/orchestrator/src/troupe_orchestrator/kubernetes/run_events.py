"""A run's events as Events of the orchestrator's workload: `kubectl describe statefulset orchestrator` shows them.

They are a courtesy: the store has them all. What cannot be written is logged and left, and nothing waits for it.
"""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

import structlog
from troupe.v1 import training_pb2
from troupe_kubernetes.api import Api, ApiError, ApiUnreachableError, Object

from troupe_orchestrator.stages import StepPlan

logger = structlog.get_logger()

_MOST_WAITING: Final = 256
_MOST_REMEMBERED: Final = 512
_LONGEST_NOTE: Final = 1000
_GROUP: Final = "events.k8s.io/v1"
_OF_TASKS: Final = frozenset({"TaskDropped", "InfrastructureFault"})
"""As many as there are tasks: they are in the run's own events."""
_STATES: Final = {
    training_pb2.RUN_STATE_RUNNING: ("Running", "Normal"),
    training_pb2.RUN_STATE_QUEUED: ("Queued", "Normal"),
    training_pb2.RUN_STATE_SUCCEEDED: ("Succeeded", "Normal"),
    training_pb2.RUN_STATE_CANCELLED: ("Cancelled", "Normal"),
    training_pb2.RUN_STATE_PAUSED: ("Paused", "Warning"),
    training_pb2.RUN_STATE_FAILED: ("Failed", "Warning"),
}


@dataclass(frozen=True, slots=True)
class Told:
    """What an Event says."""

    reason: str
    kind: Literal["Normal", "Warning"]
    note: str


def stage_started(run_id: str, plan: StepPlan) -> Told:
    """That a stage begins, or is gone on with."""
    return Told("StageStarted", "Normal", f"run {run_id}: stage {plan.stage}, {plan.trains}, from step {plan.step}")


def of_nobody(condition: training_pb2.Condition) -> Told:
    """What is the case while no run is under way."""
    return Told(condition.reason, "Warning", _with_remedy(condition))


def told_of(run_id: str, event: training_pb2.RunEvent) -> Told | None:
    """What an event of a run says to who looks at the cluster; None where that is nothing."""
    match event.WhichOneof("event"):
        case "state_changed":
            reason, kind = _STATES[event.state_changed.state]
            why = f": {event.state_changed.reason}" if event.state_changed.reason else ""
            return Told(
                reason, "Warning" if kind == "Warning" else "Normal", f"run {run_id} after step {event.step}{why}"
            )
        case "condition" if event.condition.reason not in _OF_TASKS:
            told = event.condition
            return Told(told.reason, "Warning", f"run {run_id}, step {event.step}: {_with_remedy(told)}")
        case _:
            return None


def _with_remedy(condition: training_pb2.Condition) -> str:
    return f"{condition.message}; {condition.remedy}" if condition.remedy else condition.message


def event_object(told: Told, regarding: Object, reporter: str, now: datetime) -> Object:
    """The Event, as the API server wants it."""
    return {
        "apiVersion": _GROUP,
        "kind": "Event",
        "metadata": {"generateName": f"{regarding['name']}-", "namespace": regarding["namespace"]},
        "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reportingController": "troupe.dev/orchestrator",
        "reportingInstance": reporter,
        "action": "Training",
        "reason": told.reason,
        "regarding": regarding,
        "note": told.note[:_LONGEST_NOTE],
        "type": told.kind,
    }


class EventWriter:
    """Writes Events, in a thread; of equal ones the first.

    Args:
        regarding: what they are about unless that is said with one, once it is known.
    """

    def __init__(self, api: Api, regarding: Callable[[], Object | None], reporter: str) -> None:
        self._api = api
        self._regarding = regarding
        self._reporter = reporter
        self._waiting: queue.Queue[tuple[Told, Object | None] | None] = queue.Queue(_MOST_WAITING)
        self._written: OrderedDict[tuple[Told, str], None] = OrderedDict()
        self._thread = threading.Thread(target=self._run, name="kubernetes-events", daemon=True)
        self._thread.start()

    def write(self, told: Told, regarding: Object | None = None) -> None:
        """Have an Event written, soon."""
        key = (told, "" if regarding is None else str(regarding["uid"]))
        if key in self._written:
            return
        self._written[key] = None
        if len(self._written) > _MOST_REMEMBERED:
            self._written.popitem(last=False)
        try:
            self._waiting.put_nowait((told, regarding))
        except queue.Full:
            logger.warning("too many Events: this one is not written", reason=told.reason, note=told.note)

    def close(self) -> None:
        """Write those that wait, if that takes but a moment, and no more."""
        try:
            self._waiting.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(2.0)

    def _run(self) -> None:
        while (waiting := self._waiting.get()) is not None:
            told, regarding = waiting[0], waiting[1] or self._regarding()
            if regarding is None:
                logger.info("no Event, since this orchestrator's pod is not known", reason=told.reason)
                continue
            path = self._api.namespaced(_GROUP, "events", namespace=regarding["namespace"])
            try:
                self._api.send("POST", path, event_object(told, regarding, self._reporter, datetime.now(UTC)))
            except (ApiError, ApiUnreachableError) as error:
                logger.warning("an Event could not be written", reason=told.reason, why=str(error))
