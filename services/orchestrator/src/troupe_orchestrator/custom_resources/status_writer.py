"""Writes the statuses of objects, each not too often and none while the API server asks for rest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog
from troupe_kubernetes.api import MERGE_PATCH, Api, ApiError, ApiUnreachableError

from troupe_orchestrator.custom_resources.resources import API_VERSION, Resource, read_resource

logger = structlog.get_logger()

WRITE_SECONDS: Final = 5.0
"""From one write of an object's status to the next."""
_CHANGED_SECONDS: Final = 1.0
"""After which is looked again at an object that was another than was thought."""
_FIRST_REST_SECONDS: Final = 0.5
_LONGEST_REST_SECONDS: Final = 15.0


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a write."""

    now: Resource | None = None
    """The object as it is with its new status; none if nothing was written."""
    again_after: float | None = None
    """Seconds after which it is worth looking at again."""


class StatusWriter:
    """Of the objects of one namespace."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._written_at: dict[str, float] = {}
        self._rest_until, self._rest_seconds = 0.0, _FIRST_REST_SECONDS

    async def write(self, resource: Resource, patch: Mapping[str, Any]) -> Written:
        """Merge into an object's status, if it is time for that."""
        now = time.monotonic()
        due = max(self._rest_until, self._written_at.get(resource.uid, float("-inf")) + WRITE_SECONDS)
        if due > now:
            return Written(again_after=due - now)
        # With the version, so that nothing is written into another object that has the name by now.
        body = {"metadata": {"resourceVersion": resource.version}, "status": patch}
        path = f"{self._api.namespaced(API_VERSION, resource.kind.plural, resource.name, resource.namespace)}/status"
        self._written_at[resource.uid] = now
        try:
            written = await asyncio.to_thread(self._api.send, "PATCH", path, body, MERGE_PATCH)
        except ApiError as error:
            return Written(again_after=self._refused(resource, error))
        except ApiUnreachableError as error:
            return Written(again_after=self._rest(resource, str(error)))
        self._rest_seconds = _FIRST_REST_SECONDS
        return Written(now=read_resource(resource.kind, written))

    def forget(self, uid: str) -> None:
        """The object is no more."""
        self._written_at.pop(uid, None)

    def _refused(self, resource: Resource, error: ApiError) -> float:
        if error.status >= 500 or error.status == 429:
            return self._rest(resource, str(error))
        if error.status in (404, 409):
            # It has changed, or is no more: the watch says so, if it has not already.
            self._written_at.pop(resource.uid, None)
            return _CHANGED_SECONDS
        logger.error("a status is refused", kind=resource.kind.name, name=resource.name, why=str(error))
        return _LONGEST_REST_SECONDS

    def _rest(self, resource: Resource, why: str) -> float:
        """Write nothing for a while; for how long."""
        logger.warning("a status could not be written", kind=resource.kind.name, name=resource.name, why=why)
        self._written_at.pop(resource.uid, None)
        seconds = self._rest_seconds
        self._rest_until = time.monotonic() + seconds
        self._rest_seconds = min(2 * seconds, _LONGEST_REST_SECONDS)
        return seconds
