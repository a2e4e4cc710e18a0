"""What stands behind the objects of one kind: their runs, or their jobs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from troupe_orchestrator.custom_resources.decisions import State
from troupe_orchestrator.custom_resources.resources import Kind, Resource
from troupe_orchestrator.store.runs import RunState


@dataclass(frozen=True, slots=True)
class Shown:
    """What is to be seen of a run or a job, from SQL."""

    state: RunState
    message: str
    """Why it is paused, failed or cancelled, or what a run waits for that is under way, as calls show it."""
    cause: str
    """The same as one word, CamelCase; empty where there is none."""
    fields: Mapping[str, Any]
    """Of the status, beside those that all objects have."""


class Backing(Protocol):
    """One kind's part of the orchestrator. Errors are those of the calls that do the same."""

    kind: Kind

    async def state(self, uid: str) -> State:
        """Of what an object asked for."""

    async def create(self, resource: Resource) -> None:
        """Make what an object asks for, under its uid; what is there already stays."""

    async def pause(self, uid: str) -> None:
        """Returns when it has stopped."""

    async def resume(self, uid: str, generation: int) -> None:
        """Let it go on, and record in the same transaction that the spec of this generation is carried out."""

    async def cancel(self, uid: str) -> None:
        """Returns when it has ended."""

    async def show(self, uid: str) -> Shown | None:
        """What is to be seen of it; None where it was not created."""
