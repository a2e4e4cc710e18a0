"""Replicas of the workloads, by what is trained: one writer of `replicas`, through the `scale` subresource.

Where this is on, the manifests of these workloads have no `replicas`: `kubectl apply` would set them back. The learner is
not among them, since the size of its gang is part of its configuration. No number is 0: each service is asked who it is
when an orchestrator starts.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from typing import Annotated, Final, Literal

import structlog
from pydantic import Field
from troupe_kubernetes.api import MERGE_PATCH, Api, ApiError, ApiUnreachableError

from troupe_orchestrator.kubernetes.notices import Notice
from troupe_orchestrator.run_config import Section

logger = structlog.get_logger()

_RETRY_SECONDS: Final = 10.0
_APPS: Final = "apps/v1"
Count = Annotated[int, Field(ge=1, le=5000)]
Scaled = Literal["designer", "executor", "sandbox"]


class ReplicaPlan(Section):
    """How many replicas there are to be. A workload that a stage does not name stays as it is."""

    executor: Mapping[Scaled, Count] = Field(default_factory=dict)
    """While the executor is trained."""
    designer: Mapping[Scaled, Count] = Field(default_factory=dict)
    """While the designer is trained."""
    both: Mapping[Scaled, Count] = Field(default_factory=dict)
    """While both are."""
    idle: Mapping[Scaled, Count] = Field(default_factory=dict)
    """While no run is under way, and none that is queued is about to be."""
    workloads: Mapping[Scaled, str] = Field(
        default_factory=lambda: {each: f"deployments/{each}" for each in ("designer", "executor", "sandbox")}
    )
    """KIND/NAME, kind in the plural: deployments or statefulsets."""

    def wanted(self, phase: str) -> dict[str, int]:
        """Workload, as KIND/NAME, to its number in a phase: what is trained, or `idle`."""
        counts: Mapping[Scaled, int] = getattr(self, phase)
        return {self.workloads[service]: count for service, count in counts.items()}


class Scaler:
    """Sets the numbers, in a thread. What was asked for last is what will be.

    Args:
        tell: gets a notice, in the thread, when the API server refuses; None when it no longer does.
    """

    def __init__(self, api: Api, plan: ReplicaPlan, tell: Callable[[Notice | None], None]) -> None:
        self._api = api
        self._plan = plan
        self._tell = tell
        self._phases: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._phase = ""
        self._set: dict[str, int] = {}
        self._thread = threading.Thread(target=self._run, name="kubernetes-scaling", daemon=True)
        self._thread.start()

    def enter(self, phase: str) -> None:
        """A phase begins: executor, designer, both or idle."""
        if phase != self._phase:
            self._phase = phase
            self._phases.put(phase)

    def close(self) -> None:
        """Set no more."""
        self._phases.put(None)

    def _run(self) -> None:
        phase = self._phases.get()
        while phase is not None:
            done = self._scale(self._plan.wanted(phase))
            try:
                phase = self._phases.get(timeout=None if done else _RETRY_SECONDS)
            except queue.Empty:
                continue

    def _scale(self, wanted: Mapping[str, int]) -> bool:
        for workload, count in wanted.items():
            if self._set.get(workload) == count:
                continue
            kind, _, name = workload.partition("/")
            path = f"{self._api.namespaced(_APPS, kind, name)}/scale"
            try:
                self._api.send("PATCH", path, {"spec": {"replicas": count}}, MERGE_PATCH)
            except (ApiError, ApiUnreachableError) as error:
                logger.warning("could not scale", workload=workload, replicas=count, why=str(error))
                remedy = f"see that the orchestrator may patch {kind}/scale of {name}; it is tried again"
                self._tell(Notice("ScalingFailed", f"{workload} to {count} replicas: {error}", remedy))
                return False
            logger.info("scaled", workload=workload, replicas=count)
            self._set[workload] = count
        self._tell(None)
        return True
