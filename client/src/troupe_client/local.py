"""Runs the services of a profile on this machine, as child processes over loopback.

`LocalServices` starts what a profile names, each as soon as those that it needs serve, and ends all of it: after `stop` no
process of the deployment exists, so no port of it listens, and nothing of it is left in /dev/shm.

A service that ends by itself once all have served is cleared away, with every process that it started, and started again on
the ports that it had, so that whoever knows its target need not be told (`restarts` says how often). One that ends before
that, or keeps ending, is an error that carries the end of its log.
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Final

from troupe_contracts.access import Role
from troupe_contracts.identity import assume

from troupe_client import credentials, restarts
from troupe_client.processes import (
    SERVICE,
    SHARED_MEMORY,
    TAG,
    Identity,
    identify,
    kill_all,
    members,
    send,
    shared_memory_of,
)
from troupe_client.profile import Profile
from troupe_client.state import Deployment, ServiceState, StateFolder
from troupe_client.wiring import FREE, Addresses, Folders, Launch, Purpose, launch, needs, own_environment, services_of

# SIGTERM, then this long, then SIGKILL: all is over within five seconds.
GRACE_SECONDS: Final = 3.0
_KILL_SECONDS: Final = 1.5
_POLL_SECONDS: Final = 0.05
_LOG_LINES: Final = 12

Tell = Callable[[str], None]


class ServiceEndedError(RuntimeError):
    """A service ended by itself, or did not start in time; the text has the end of its log."""


@dataclass(slots=True)
class _Process:
    """A service's process, the times at which those before it ended, and what it has left in the kernel's care."""

    popen: "subprocess.Popen[bytes] | None" = None
    started: float = 0.0
    not_before: float = 0.0
    """When it may be started again."""
    endings: list[float] = field(default_factory=list)
    members: set[Identity] = field(default_factory=set)
    shared_memory: set[Path] = field(default_factory=set)
    """With `members`, as of when it began to serve: nobody can tell once it was killed."""


class LocalServices:
    """The services of one profile. The caller holds the state folder (`StateFolder.held`)."""

    def __init__(
        self,
        profile: Profile,
        state: StateFolder,
        purpose: Purpose = Purpose.TRAINING,
        tell: Tell = lambda line: None,
    ) -> None:
        """Args:
        tell: called with a line when a service serves, and when one has ended.
        """
        self._profile = profile
        self._state = state
        self._folders = Folders(state.path.resolve())
        self._names = services_of(profile, purpose)
        self._tell = tell
        self._processes = {name: _Process() for name in self._names}
        self._shared_memory_before = _listed(SHARED_MEMORY)
        self._hurry = asyncio.Event()
        supervisor = identify(os.getpid())
        assert supervisor is not None
        self._deployment = Deployment(supervisor, tag=uuid.uuid4().hex, profile=profile.name)

    @property
    def services(self) -> Mapping[str, ServiceState]:
        """What has been started, by name."""
        return self._deployment.services

    async def start(self) -> None:
        """Starts all services; returns when each serves. From then on this process calls them as a client.

        Raises:
            ServiceEndedError: one ended, or did not serve within the profile's `start_seconds`.
        """
        for folder in ("run", "logs"):
            shutil.rmtree(self._folders.state / folder, ignore_errors=True)
            (self._folders.state / folder).mkdir(parents=True)
        credentials.issue(self._folders.credentials)
        assume(credentials.identity(self._folders.credentials, Role.CLIENT))
        while not all(self._serves(name) for name in self._names):
            await self._tend()
            await asyncio.sleep(_POLL_SECONDS)
        self._record(replace(self._deployment, ready=True))

    async def watch(self) -> None:
        """Keeps the services up.

        Raises:
            ServiceEndedError: one keeps ending, or does not serve any more.
        """
        while True:
            await self._tend()
            await asyncio.sleep(_POLL_SECONDS)

    def check(self) -> None:
        """Looks once whether all that was started still runs.

        Raises:
            ServiceEndedError: one has ended, or is being started again.
        """
        for name, process in self._processes.items():
            status = None if process.popen is None else process.popen.poll()
            if status is not None:
                raise ServiceEndedError(f"{name} ended with {_status(status)}" + self._log_end(name))
            if name in self.services and not self._serves(name):
                ended = self.services[name].ended or "is starting"
                raise ServiceEndedError(f"{name} {ended}: try again once it serves" + self._log_end(name))

    def hurry(self) -> None:
        """Makes a `stop` under way kill at once."""
        self._hurry.set()

    async def stop(self) -> None:
        """Ends every process of the deployment and removes what they left in /dev/shm. Takes at most five
        seconds."""
        roots, tag = self._deployment.processes(), self._deployment.tag
        known = members(roots, tag)
        held = shared_memory_of(known)
        send(roots, signal.SIGTERM)
        await self._gone(known, GRACE_SECONDS, self._hurry)
        if self._left(known):
            held |= kill_all(roots, known, tag)
            await self._gone(known, _KILL_SECONDS, asyncio.Event())
        self._reap()
        held |= {path for process in self._processes.values() for path in process.shared_memory}
        for path in held - self._shared_memory_before:
            path.unlink(missing_ok=True)
        left = self._left(known)
        if left:
            pids = ", ".join(str(process.pid) for process in left)
            raise ServiceEndedError(f"processes {pids} survive SIGKILL: the kernel holds them; see /proc/PID/stack")
        self._state.clear()

    async def _gone(self, known: set[Identity], seconds: float, hurry: asyncio.Event) -> None:
        """Returns when nothing is left, when the time is over, or when told to hurry."""
        deadline = time.monotonic() + seconds
        while self._left(known) and time.monotonic() < deadline and not hurry.is_set():
            self._reap()
            await asyncio.sleep(_POLL_SECONDS)

    def _reap(self) -> None:
        for process in self._processes.values():
            if process.popen is not None:
                process.popen.poll()

    def _left(self, known: set[Identity]) -> set[Identity]:
        still = {process for process in known if process.alive()}
        return still | members(self._deployment.processes(), self._deployment.tag)

    async def _tend(self) -> None:
        """Looks at each service once, and does what is due."""
        for name, process in self._processes.items():
            if process.popen is None:
                self._launch_if_possible(name)
            elif (status := process.popen.poll()) is not None:
                await self._ended(name, f"ended with {_status(status)}")
            elif self._serves(name) or self._read_ready_file(name):
                continue
            elif time.monotonic() - process.started > self._profile.start_seconds:
                late = f"did not serve within {self._profile.start_seconds:g} s (start_seconds of the profile)"
                await self._ended(name, late)

    async def _ended(self, name: str, how: str) -> None:
        """Clears away what is left of a service and has it started again.

        Raises:
            ServiceEndedError: it never served, or ended too often.
        """
        if not self._deployment.ready:
            raise ServiceEndedError(f"{name} {how}" + self._log_end(name))
        process, now = self._processes[name], time.monotonic()
        endings = [*restarts.recent(process.endings, now), now]
        limit = self._profile.restart_limit
        seconds = restarts.delay(endings, limit)
        if seconds is None:
            raise ServiceEndedError(
                f"{name} {how}: more than {limit} times within {restarts.WINDOW_SECONDS / 60:.0f} minutes "
                "(restart_limit of the profile)" + self._log_end(name)
            )
        state = self.services[name]
        self._record_service(
            name,
            replace(state, serves=False, restarts=state.restarts + 1, ended=f"{how} at {datetime.now():%H:%M:%S}"),
        )
        self._tell(f"{name} {how}: starting it again ({len(endings)} of {limit} times)")
        await self._clear(name)
        self._processes[name] = _Process(endings=endings, not_before=now + seconds)

    async def _clear(self, name: str) -> None:
        """Ends every process that a service has started, and removes what they held in /dev/shm."""
        process, tag = self._processes[name], self._deployment.tag
        roots = [self.services[name].identity]
        held, deadline = set(process.shared_memory), time.monotonic() + _KILL_SECONDS
        while left := {each for each in process.members if each.alive()} | members(roots, tag, name):
            if time.monotonic() > deadline:
                pids = ", ".join(str(each.pid) for each in left)
                raise ServiceEndedError(
                    f"processes {pids} of {name} survive SIGKILL: the kernel holds them; see /proc/PID/stack"
                )
            held |= kill_all(roots, process.members, tag, name)
            self._reap()
            await asyncio.sleep(_POLL_SECONDS)
        for path in held - self._shared_memory_before:
            path.unlink(missing_ok=True)
        self._folders.ready_file(name).unlink(missing_ok=True)

    def _serves(self, name: str) -> bool:
        return name in self.services and self.services[name].serves

    def _launch_if_possible(self, name: str) -> None:
        """Starts a service whose time has come, once those that it needs serve."""
        needed = needs(name, self._names, self._profile)
        if time.monotonic() < self._processes[name].not_before or not all(map(self._serves, needed)):
            return
        targets = {other: self.services[other].target for other in needed}
        before = self.services.get(name)
        addresses = Addresses(before.target, before.metrics) if before is not None and before.target else FREE
        self._spawn(launch(name, self._profile, self._folders, targets, own_environment(), addresses, guarded=True))

    def _spawn(self, what: Launch) -> None:
        """Starts one service. Called on the thread that lives as long as the supervisor: see
        `contracts.parent`."""
        name, log = what.service, self._folders.log(what.service)
        with log.open("ab") as output:
            popen = subprocess.Popen(
                what.command,
                env={**what.environment, TAG: self._deployment.tag, SERVICE: name},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        process = self._processes[name]
        process.popen, process.started = popen, time.monotonic()
        identity = identify(popen.pid)
        if identity is not None:  # else it has ended already, and the next look says so
            policy = what.environment.get("TROUPE_POLICY_ID", "")
            fresh = ServiceState(identity.pid, identity.start_ticks, str(log), policy)
            state = replace(self.services.get(name, fresh), pid=identity.pid, start_ticks=identity.start_ticks)
            self._record_service(name, state)

    def _read_ready_file(self, name: str) -> bool:
        try:
            ready = json.loads(self._folders.ready_file(name).read_text())
        except FileNotFoundError:
            return False
        process = self._processes[name]
        self._record_service(
            name, replace(self.services[name], target=ready["target"], metrics=ready["metrics"], serves=True)
        )
        process.members = members([self.services[name].identity], self._deployment.tag, name)
        process.shared_memory = shared_memory_of(process.members)
        self._tell(f"{name} serves after {time.monotonic() - process.started:.1f} s")
        return True

    def _record_service(self, name: str, state: ServiceState) -> None:
        self._record(replace(self._deployment, services={**self.services, name: state}))

    def _record(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._state.write(deployment)

    def _log_end(self, name: str) -> str:
        log = self._folders.log(name)
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        return f"; the end of {log}:\n" + "\n".join(f"  {line}" for line in lines[-_LOG_LINES:] or ["(empty)"])


async def stop_other(state: StateFolder) -> bool:
    """Ends the deployment of another supervisor, or what one that was killed has left; False if there is
    none."""
    deployment = state.read()
    if deployment is None:
        return False
    known = members(deployment.processes(), deployment.tag)
    found = bool(known) or deployment.supervisor.alive()
    send([deployment.supervisor], signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS + 2 * _KILL_SECONDS
    while deployment.supervisor.alive() and time.monotonic() < deadline:  # noqa: ASYNC110 - not our event
        await asyncio.sleep(_POLL_SECONDS)
    if deployment.supervisor.alive():
        send([deployment.supervisor], signal.SIGKILL)
    for path in kill_all(deployment.processes(), known, deployment.tag):
        path.unlink(missing_ok=True)
    state.clear()
    return found


def _listed(folder: Path) -> frozenset[Path]:
    return frozenset(folder.iterdir()) if folder.exists() else frozenset()


def _status(status: int) -> str:
    return f"exit status {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"
