"""Carries out what objects want, and writes into their status what SQL says.

One task looks at objects, one after another and only those of which something has changed. What takes long (to create, to
stop at a step's boundary) is a task of its own, one at a time for each object. Nothing waits for the API server but the
writing of statuses: while it is away, what was wanted last is carried out, and runs go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Final

import grpc
import structlog
from troupe.v1 import training_pb2
from troupe_contracts.errors import FailedPrecondition, InvalidArgument, NotFound, ServiceError, describe
from troupe_kubernetes.api import Api
from troupe_kubernetes.mirror import Mirror, Snapshot
from troupe_kubernetes.status import merge_patch

from troupe_orchestrator.custom_resources.agenda import Agenda
from troupe_orchestrator.custom_resources.backing import Backing
from troupe_orchestrator.custom_resources.decisions import Act, State, decide, decide_for_gone
from troupe_orchestrator.custom_resources.projection import ENDED_PHASES, PENDING, status_of
from troupe_orchestrator.custom_resources.refusals import refusal_of
from troupe_orchestrator.custom_resources.resources import (
    API_VERSION,
    TRAINING_RUN,
    Change,
    Desired,
    Kind,
    Resource,
    ResourceReader,
)
from troupe_orchestrator.custom_resources.status_writer import StatusWriter
from troupe_orchestrator.kubernetes.run_events import EventWriter, Told, stage_started, told_of
from troupe_orchestrator.stages import StepPlan
from troupe_orchestrator.store.database import Database, LeaseLostError
from troupe_orchestrator.store.object_requests import ObjectRequest, forget_request, list_requests, put_request
from troupe_orchestrator.store.runs import RunState

logger = structlog.get_logger()

_RETRY_SECONDS: Final = 10.0
"""After which is tried again what could not be done."""
_ACT_SECONDS: Final = 1.0
"""For which a status is not written while something is done that will change it."""
_RECORD_LOST: Final = Told(
    "RecordLost",
    "Warning",
    "it has ended, and the store has nothing of it, which is another than it was: nothing is done for its spec any more; "
    "apply another object",
)


@dataclass(slots=True)
class _Doing:
    """Something that is done for an object."""

    act: Act
    since: float
    task: asyncio.Task[None]


@dataclass(frozen=True, slots=True)
class _HeldUp:
    """Something that could not be done."""

    act: Act
    why: str
    until: float


class Controller:
    """The objects of one namespace. Used on the event loop; a listener of all runs, and of all jobs by `changed`."""

    def __init__(self, api: Api, database: Database) -> None:
        self._api = api
        self._database = database
        self._loop = asyncio.get_running_loop()
        self._backings: dict[str, Backing] = {}
        self._mirrors: list[Mirror] = []
        self._resources: dict[str, Resource] = {}
        self._requests: dict[str, ObjectRequest] = {}
        self._listed: set[Kind] = set()
        """Kinds of which all objects are known."""
        self._away: dict[Kind, str] = {}
        self._agenda = Agenda()
        self._woken = asyncio.Event()
        self._doing: dict[str, _Doing] = {}
        self._held_up: dict[str, _HeldUp] = {}
        self._statuses = StatusWriter(api)
        self._creating = asyncio.Lock()
        self._stages: dict[str, int] = {}
        self._events = EventWriter(api, lambda: None, socket.gethostname())
        self._working: asyncio.Task[None] | None = None
        self._looking = False

    async def start(self, backings: Iterable[Backing]) -> None:
        """Look at the objects that these stand behind."""
        self._backings = {backing.kind.name: backing for backing in backings}
        self._requests = {request.uid: request for request in await list_requests(self._database)}
        self._working = asyncio.create_task(self._work(), name="custom-resources")
        for backing in self._backings.values():
            self._watch(backing.kind)

    async def close(self) -> None:
        """Do and write nothing more. What is being done is cut off; the next start goes on with it."""
        tasks = [doing.task for doing in self._doing.values()]
        tasks += [] if self._working is None else [self._working]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(asyncio.to_thread(mirror.stop) for mirror in self._mirrors))
        await asyncio.to_thread(self._events.close)

    def changed(self, uid: str) -> None:
        """Something has happened to a run or job, perhaps one that an object asked for."""
        if uid in self._requests:
            self._look(uid)

    def rolls(self, run_id: str, plan: StepPlan) -> None:
        self.changed(run_id)
        if self._stages.get(run_id) != plan.stage:
            self._stages[run_id] = plan.stage
            self._tell(run_id, stage_started(run_id, plan))

    def stored(self, run_id: str, event: training_pb2.RunEvent) -> None:
        self.changed(run_id)
        told = told_of(run_id, event)
        if told is not None:
            self._tell(run_id, told)

    @property
    def idle(self) -> bool:
        """Nothing is done, and nothing is to be looked at."""
        return not self._looking and not self._doing and self._agenda.next_time() is None

    def _watch(self, kind: Kind) -> None:
        reader = ResourceReader(kind)

        def told(snapshot: Snapshot) -> None:
            change = reader.read(snapshot)
            # The last word of a mirror may come when the loop has ended.
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(partial(self._take, kind, change))

        mirror = Mirror(self._api, self._api.namespaced(API_VERSION, kind.plural), {}, told)
        self._mirrors.append(mirror)
        mirror.start()

    def _take(self, kind: Kind, change: Change) -> None:
        """The objects of a kind, as they are now."""
        if change.away:
            if kind not in self._away:
                logger.warning(
                    "objects cannot be asked for; runs go on",
                    kind=kind.name,
                    why=change.away,
                    remedy="see that the API server is there, and that k8s/components/crds is applied",
                )
            self._away[kind] = change.away
            return
        self._away.pop(kind, None)
        first = kind not in self._listed
        self._listed.add(kind)
        gone = list(change.gone)
        if first:
            there = {resource.uid for resource in change.come}
            gone += [uid for uid, each in self._requests.items() if each.kind == kind.name and uid not in there]
        # First, so that what they hold is free for those that come.
        for uid in gone:
            self._resources.pop(uid, None)
            self._look(uid)
        for resource in change.come:
            self._resources[resource.uid] = resource
            if not (first and _is_settled(resource)):
                self._look(resource.uid)

    def _look(self, uid: str, after: float = 0.0) -> None:
        """Have an object looked at."""
        self._agenda.put(uid, time.monotonic() + after)
        self._woken.set()

    async def _work(self) -> None:
        while True:
            self._woken.clear()
            uid = self._agenda.take(time.monotonic())
            if uid is None:
                next_time = self._agenda.next_time()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if next_time is None else next_time - time.monotonic()):
                        await self._woken.wait()
                continue
            self._looking = True
            try:
                await self._look_at(uid)
            except LeaseLostError:
                return
            except ServiceError as error:
                logger.warning("an object waits for the store", uid=uid, why=str(error))
                self._look(uid, _RETRY_SECONDS)
            except Exception:  # the boundary of an object: what goes wrong with one must not stop the others
                logger.exception("an object could not be looked at", uid=uid)
                self._look(uid, _RETRY_SECONDS)
            finally:
                self._looking = False

    async def _look_at(self, uid: str) -> None:
        resource, request = self._resources.get(uid), self._requests.get(uid)
        backing = self._backing_of(resource, request)
        if backing is None or backing.kind not in self._listed:
            return
        if resource is not None and request is None and _has_ended(resource):
            # How it ended was said from another store, and nothing of this one makes that untrue.
            if not _is_settled(resource):
                self._tell(uid, _RECORD_LOST)
            return
        doing = self._doing.get(uid)
        if doing is None or doing.act is Act.PAUSE:
            act = _act(resource, request, await backing.state(uid))
            if self._doing.get(uid) is not doing:
                # It has ended meanwhile, and what was read may be from before: its end has the object looked at again.
                return
            if doing is None and self._begins(uid, act, backing, resource):
                return
            if doing is not None and act is Act.CANCEL:
                # A step may have long to go: it is not waited for.
                doing.task.cancel()
                return
        if doing is not None and time.monotonic() < doing.since + _ACT_SECONDS:
            self._look(uid, doing.since + _ACT_SECONDS - time.monotonic())
            return
        if resource is not None:
            await self._show(uid, backing)

    def _begins(self, uid: str, act: Act, backing: Backing, resource: Resource | None) -> bool:
        """Begin to do something, unless it was held up just before."""
        now, held_up = time.monotonic(), self._held_up.get(uid)
        if held_up is not None and held_up.act is act and held_up.until > now:
            self._look(uid, held_up.until - now)
            return False
        if act is Act.NOTHING:
            self._held_up.pop(uid, None)
            return False
        task = asyncio.create_task(self._do(uid, act, backing, resource), name=f"custom-resource-{act}")
        self._doing[uid] = _Doing(act, now, task)
        self._look(uid, _ACT_SECONDS)
        return True

    def _backing_of(self, resource: Resource | None, request: ObjectRequest | None) -> Backing | None:
        kind = resource.kind.name if resource is not None else request.kind if request is not None else ""
        return self._backings.get(kind)

    async def _do(self, uid: str, act: Act, backing: Backing, resource: Resource | None) -> None:
        """Do one thing for an object, and have it looked at again."""
        try:
            await self._done(uid, act, backing, resource)
        except (InvalidArgument, FailedPrecondition, NotFound) as error:
            if act is Act.CREATE and resource is not None:
                await self._refuse(resource, error)
            else:
                self._hold_up(uid, act, str(error))
        except grpc.RpcError as error:
            self._hold_up(uid, act, describe(error))
        except LeaseLostError:
            return
        except Exception as error:  # as above: whatever it is, it is tried again and said in the status
            logger.warning("an object is held up", uid=uid, act=act, exc_info=not isinstance(error, ServiceError))
            self._hold_up(uid, act, str(error) or type(error).__name__)
        else:
            self._held_up.pop(uid, None)
        finally:
            del self._doing[uid]
            self._look(uid)

    async def _done(self, uid: str, act: Act, backing: Backing, resource: Resource | None) -> None:
        match act:
            case Act.CREATE:
                assert resource is not None
                # In the order in which they were made, and when those that are cancelled have let go.
                async with self._creating:
                    await self._until_cancelled()
                    self._check_known(resource)
                    await self._note(resource)
                    await backing.create(resource)
            case Act.RESUME:
                assert resource is not None
                await backing.resume(uid, resource.generation)
                self._requests[uid] = _request_of(resource)
            case Act.PAUSE:
                await backing.pause(uid)
            case Act.CANCEL:
                await backing.cancel(uid)
            case Act.FORGET:
                await forget_request(self._database, uid)
                self._requests.pop(uid, None)
                self._held_up.pop(uid, None)
                self._statuses.forget(uid)
                self._stages.pop(uid, None)
        if resource is not None and act in (Act.NOTE, Act.PAUSE, Act.CANCEL):
            await self._note(resource)

    async def _note(self, resource: Resource) -> None:
        """Record that the spec of an object is carried out; for one that is to be created, that this has begun."""
        known = self._requests.get(resource.uid)
        request = _request_of(resource)
        if known is not None and known.reason:
            request = replace(known, generation=resource.generation)
        if request != known:
            await put_request(self._database, request)
            self._requests[resource.uid] = request

    async def _refuse(self, resource: Resource, error: ServiceError) -> None:
        refusal = refusal_of(error)
        request = replace(_request_of(resource), reason=refusal.reason, message=refusal.message)
        logger.warning("an object is refused", kind=request.kind, name=request.name, reason=refusal.message)
        await put_request(self._database, request)
        self._requests[resource.uid] = request
        self._tell(resource.uid, Told("Refused", "Warning", refusal.message))

    def _hold_up(self, uid: str, act: Act, why: str) -> None:
        self._held_up[uid] = _HeldUp(act, why, time.monotonic() + _RETRY_SECONDS)

    async def _until_cancelled(self) -> None:
        ending = [doing.task for doing in self._doing.values() if doing.act is Act.CANCEL]
        if ending:
            await asyncio.wait(ending)

    def _check_known(self, resource: Resource) -> None:
        """Refuse to make again what a status tells of and the store does not have."""
        phase = resource.status.get("phase", PENDING)
        if phase != PENDING and resource.uid not in self._requests:
            raise FailedPrecondition(
                "store", f"has nothing of this object, whose status says {phase}: it is another store than it was"
            )

    async def _show(self, uid: str, backing: Backing) -> None:
        """Write the status of an object, if that is another now."""
        shown, held_up = await backing.show(uid), self._held_up.get(uid)
        resource = self._resources.get(uid)
        if resource is None:
            return
        status = status_of(
            resource.kind,
            resource.desired,
            self._requests.get(uid),
            shown,
            "" if held_up is None else held_up.why,
            resource.status,
            datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
        if shown is not None and shown.state is RunState.RUNNING and shown.message:
            # That it waits no more is nothing that is told.
            self._look(uid, _RETRY_SECONDS)
        patch = merge_patch(resource.status, status)
        if not patch:
            return
        written = await self._statuses.write(resource, patch)
        if written.again_after is not None:
            self._look(uid, written.again_after)
        if written.now is None:
            return
        if self._resources.get(uid) is resource:
            self._resources[uid] = written.now
        if "phase" in patch and resource.kind is not TRAINING_RUN:
            # A run tells more of itself.
            failed = status["phase"] == "Failed"
            self._tell(uid, Told(status["phase"], "Warning" if failed else "Normal", status["reason"] or uid))

    def _tell(self, uid: str, told: Told) -> None:
        """Write an Event of the object that asked for a run or job."""
        resource = self._resources.get(uid)
        if resource is not None:
            self._events.write(told, resource.reference)


def _act(resource: Resource | None, request: ObjectRequest | None, state: State) -> Act:
    if resource is None:
        return Act.NOTHING if request is None else decide_for_gone(state)
    if request is None and resource.desired is Desired.RUNNING:
        # On record first, whatever there is.
        return Act.CREATE
    carried_out = request is not None and request.generation == resource.generation
    return decide(resource.desired, state, carried_out, request is not None and bool(request.reason))


def _is_settled(resource: Resource) -> bool:
    """Whether an object has ended and says so: nothing is asked of the store for the many that have."""
    return _has_ended(resource) and resource.status.get("observedGeneration") == resource.generation


def _has_ended(resource: Resource) -> bool:
    return resource.status.get("phase") in ENDED_PHASES


def _request_of(resource: Resource) -> ObjectRequest:
    return ObjectRequest(resource.uid, resource.kind.name, resource.namespace, resource.name, resource.generation)
