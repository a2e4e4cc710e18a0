"""TrainingRuns and EvalJobs as they are listed and watched. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from troupe_kubernetes.api import Object
    from troupe_kubernetes.mirror import Snapshot

GROUP: Final = "troupe.dev"
VERSION: Final = "v1"
API_VERSION: Final = f"{GROUP}/{VERSION}"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object."""

    name: str
    plural: str


TRAINING_RUN: Final = Kind("TrainingRun", "trainingruns")
EVAL_JOB: Final = Kind("EvalJob", "evaljobs")
KINDS: Final = {kind.name: kind for kind in (TRAINING_RUN, EVAL_JOB)}


class Desired(StrEnum):
    """What an object wants its run to do: `spec.desiredState`, the one field that may change."""

    RUNNING = "Running"
    """Run, and go on after a pause; what pauses later for a reason of its own stays paused until this is said anew."""
    PAUSED = "Paused"
    """Stop at the next step boundary; what was not created yet waits. No EvalJob can be paused."""
    CANCELLED = "Cancelled"
    """End, for good."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One object, as it was read last."""

    kind: Kind
    namespace: str
    name: str
    uid: str
    version: str
    """Of the object; a write that is of another one is refused."""
    generation: int
    """Of its spec."""
    created: str
    desired: Desired
    spec: Mapping[str, Any]
    status: Mapping[str, Any]

    @property
    def reference(self) -> Object:
        """The object, as Events are about it."""
        return {
            "apiVersion": API_VERSION,
            "kind": self.kind.name,
            "namespace": self.namespace,
            "name": self.name,
            "uid": self.uid,
        }


def read_resource(kind: Kind, found: Mapping[str, Any]) -> Resource:
    """An object as the API server gives it. One that is being deleted wants to be cancelled."""
    metadata, spec = found["metadata"], found.get("spec") or {}
    deleted = "deletionTimestamp" in metadata
    # The schema admits no other word; where somebody took it away, a word that says nothing changes nothing.
    word = spec.get("desiredState", Desired.RUNNING)
    known = word if word in tuple(Desired) else Desired.RUNNING
    return Resource(
        kind=kind,
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        version=metadata["resourceVersion"],
        generation=int(metadata.get("generation", 1)),
        created=metadata.get("creationTimestamp", ""),
        desired=Desired.CANCELLED if deleted else Desired(known),
        spec=spec,
        status=found.get("status") or {},
    )


@dataclass(frozen=True, slots=True)
class Change:
    """What is different from what was said before."""

    away: str
    """Why nobody can say; then nothing has changed."""
    come: tuple[Resource, ...] = ()
    """New ones and those that are others now, the oldest first."""
    gone: tuple[str, ...] = ()
    """Uids of those that are no more."""


class ResourceReader:
    """Reads snapshots of one kind, one after another."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._versions: dict[str, str] = {}

    def read(self, snapshot: Snapshot) -> Change:
        """What has changed. While the API server is away nothing has."""
        if snapshot.away:
            return Change(snapshot.away)
        before = self._versions
        self._versions = {each["metadata"]["uid"]: each["metadata"]["resourceVersion"] for each in snapshot.objects}
        come = [
            read_resource(self._kind, each)
            for each in snapshot.objects
            if before.get(each["metadata"]["uid"]) != each["metadata"]["resourceVersion"]
        ]
        come.sort(key=lambda each: (each.created, each.name))
        return Change("", tuple(come), tuple(before.keys() - self._versions.keys()))
