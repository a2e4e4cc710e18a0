"""Runs the services of a profile on this machine, as child processes over loopback.

`LocalServices` starts what a profile names, each as soon as the targets that it needs are known, and ends all
of it: after `stop` no process of the deployment exists, so no port of it listens, and nothing of it is left
in /dev/shm. A service that ends by itself is an error that carries the end of its log.
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
from dataclasses import replace
from pathlib import Path
from typing import Final

from troupe_client.processes import (
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
from troupe_client.wiring import Folders, Launch, Purpose, launch, needs, own_environment, services_of

# SIGTERM, then this long, then SIGKILL: all is over within five seconds.
GRACE_SECONDS: Final = 3.0
_KILL_SECONDS: Final = 1.5
_POLL_SECONDS: Final = 0.05
_LOG_LINES: Final = 12

OnReady = Callable[[str, float], None]


class ServiceEndedError(RuntimeError):
    """A service ended by itself, or did not start in time; the text has the end of its log."""


class LocalServices:
    """The services of one profile. The caller holds the state folder (`StateFolder.held`)."""

    def __init__(self, profile: Profile, state: StateFolder, purpose: Purpose = Purpose.TRAINING) -> None:
        self._profile = profile
        self._state = state
        self._folders = Folders(state.path.resolve())
        self._names = services_of(profile, purpose)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._shared_memory_before = _listed(SHARED_MEMORY)
        self._hurry = asyncio.Event()
        supervisor = identify(os.getpid())
        assert supervisor is not None
        self._deployment = Deployment(supervisor, tag=uuid.uuid4().hex, profile=profile.name)

    @property
    def services(self) -> Mapping[str, ServiceState]:
        """What has been started, by name."""
        return self._deployment.services

    async def start(self, on_ready: OnReady = lambda service, seconds: None) -> None:
        """Starts all services; returns when each serves.

        Args:
            on_ready: called with the name and the seconds since the start, when a service serves.

        Raises:
            ServiceEndedError: one ended, or not all served within the profile's `start_seconds`.
        """
        for folder in ("run", "logs"):
            shutil.rmtree(self._folders.state / folder, ignore_errors=True)
            (self._folders.state / folder).mkdir(parents=True)
        begun = time.monotonic()
        while waiting := [name for name in self._names if not self._target(name)]:
            for name in waiting:
                if name not in self._processes:
                    self._launch_if_possible(name)
                elif self._read_ready_file(name):
                    on_ready(name, time.monotonic() - begun)
            self.check()
            if time.monotonic() - begun > self._profile.start_seconds:
                late = next(name for name in self._names if not self._target(name))
                raise ServiceEndedError(
                    f"{late} did not serve within {self._profile.start_seconds:g} s (start_seconds of the profile)"
                    + self._log_end(late)
                )
            await asyncio.sleep(_POLL_SECONDS)
        self._record(replace(self._deployment, ready=True))

    async def watch(self) -> None:
        """Runs until a service ends by itself.

        Raises:
            ServiceEndedError: then.
        """
        while True:
            self.check()
            await asyncio.sleep(10 * _POLL_SECONDS)

    def check(self) -> None:
        """Looks once whether all that was started still runs.

        Raises:
            ServiceEndedError: one has ended.
        """
        for name, process in self._processes.items():
            status = process.poll()
            if status is not None:
                raise ServiceEndedError(f"{name} ended with {_status(status)}" + self._log_end(name))

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
        for process in self._processes.values():
            process.poll()
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
            for process in self._processes.values():
                process.poll()
            await asyncio.sleep(_POLL_SECONDS)

    def _left(self, known: set[Identity]) -> set[Identity]:
        still = {process for process in known if process.alive()}
        return still | members(self._deployment.processes(), self._deployment.tag)

    def _target(self, name: str) -> str:
        return self.services[name].target if name in self.services else ""

    def _launch_if_possible(self, name: str) -> None:
        targets = {other: self._target(other) for other in needs(name, self._names, self._profile)}
        if all(targets.values()):
            self._spawn(launch(name, self._profile, self._folders, targets, own_environment()))

    def _spawn(self, what: Launch) -> None:
        """Starts one service. Called on the thread that lives as long as the supervisor: see
        `contracts.parent`."""
        log = self._folders.log(what.service)
        with log.open("wb") as output:
            process = subprocess.Popen(
                what.command,
                env={**what.environment, TAG: self._deployment.tag},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._processes[what.service] = process
        identity = identify(process.pid)
        if identity is not None:  # else it has ended already, and `check` says so
            policy = what.environment.get("TROUPE_POLICY_ID", "")
            state = ServiceState(identity.pid, identity.start_ticks, str(log), policy)
            self._record_service(what.service, state)

    def _read_ready_file(self, name: str) -> bool:
        try:
            ready = json.loads(self._folders.ready_file(name).read_text())
        except FileNotFoundError:
            return False
        state = replace(self.services[name], target=ready["target"], metrics=ready["metrics"])
        self._record_service(name, state)
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
