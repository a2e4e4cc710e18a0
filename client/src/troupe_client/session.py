"""The services that a command talks to: those that run already, or its own for its own life.

A command with `--target` talks to that orchestrator and starts nothing, nor does one with `--context` or `--namespace`,
which is led to the orchestrator of that cluster. Otherwise, when a supervisor holds
the state folder, its services are used; else the profile's services are started, and stopped when the command
ends.

With `--target` the credentials are those that the command was given; else those of the state folder's deployment.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
from troupe_contracts.access import Role
from troupe_contracts.identity import assume

from troupe_client.credentials import identity
from troupe_client.interrupt import Interrupts
from troupe_client.kubernetes.place import ClusterPlace, assume_role, identity_for, open_api
from troupe_client.local import LocalServices, Tell
from troupe_client.profile import load_profile
from troupe_client.state import Deployment, StateFolder
from troupe_client.wiring import ORCHESTRATOR, Folders, Purpose

DEFAULT_STATE: Final = Path(".troupe")
_POLL_SECONDS: Final = 0.2

# Given a profile's name, what to call with each line about its services.
Starting = Callable[[str], Tell]


class NoServicesError(RuntimeError):
    """There is nothing to talk to; the text says how to get it."""


@dataclass(frozen=True)
class Place:
    """Where a command finds its services, as its options say."""

    target: str | None = None
    state: Path = DEFAULT_STATE
    profile: Path | None = None
    cluster: ClusterPlace | None = None

    @property
    def is_elsewhere(self) -> bool:
        """The services are somebody else's to start."""
        return self.target is not None or self.cluster is not None

    def profile_path(self) -> Path:
        """The profile to start; that of the state folder unless one is named.

        Raises:
            NoServicesError: none is named and the folder has none.
        """
        path = self.profile or self.state / "profile.yaml"
        if self.profile is None and not path.exists():
            raise NoServicesError(
                f"there is no profile {path}: `make quickstart` writes the starter's, or name one with --profile, "
                "or a running orchestrator with --target"
            )
        return path


@asynccontextmanager
async def orchestrator(
    place: Place, interrupts: Interrupts, starting: Starting, purpose: Purpose
) -> AsyncIterator[str]:
    """The target of an orchestrator, for as long as the block runs.

    A service that ends while the block runs is started again; one that keeps ending ends the block with
    `ServiceEndedError`.
    """
    if place.target is not None:
        yield place.target
        return
    if place.cluster is not None:
        async with _of_cluster(place.cluster) as target:
            yield target
        return
    state = StateFolder(place.state)
    if state.is_held():
        deployment = await _when_ready(state)
        assume(identity(Folders(place.state).credentials, Role.CLIENT))
        yield deployment.services[ORCHESTRATOR].target
        return
    async with running(place, interrupts, starting, purpose) as services:
        yield services.services[ORCHESTRATOR].target


@asynccontextmanager
async def _of_cluster(cluster: ClusterPlace) -> AsyncIterator[str]:
    # Here, since the API's client takes a second to import, which only commands with a cluster need.
    from troupe_client.kubernetes.forwarding import forwarded_service

    async with open_api(cluster) as api:
        await assume_role(api, Role.CLIENT)
        assume(identity_for(ORCHESTRATOR))
        async with forwarded_service(api, ORCHESTRATOR) as target:
            yield target


@asynccontextmanager
async def running(
    place: Place, interrupts: Interrupts, starting: Starting, purpose: Purpose
) -> AsyncIterator[LocalServices]:
    """The profile's services, started before the block and stopped after it, however it ends."""
    profile = load_profile(place.profile_path())
    state = StateFolder(place.state)
    with state.held():
        services = LocalServices(profile, state, purpose, starting(profile.name))
        interrupts.on_hurry(services.hurry)
        try:
            await services.start()
            async with _guarded(services):
                yield services
        finally:
            await services.stop()


@asynccontextmanager
async def _guarded(services: LocalServices) -> AsyncIterator[None]:
    """Ends the block when a service ends for good, with the error that says why."""
    task = asyncio.current_task()
    assert task is not None
    watching = asyncio.create_task(services.watch())
    watching.add_done_callback(lambda watched: None if watched.cancelled() else task.cancel())
    try:
        yield
    except asyncio.CancelledError:
        if not watching.done():
            raise
        task.uncancel()
        await watching
    except grpc.RpcError:
        # A service that ended explains a failed call better than the call does.
        await asyncio.sleep(_POLL_SECONDS)
        services.check()
        raise
    finally:
        watching.cancel()


async def _when_ready(state: StateFolder) -> Deployment:
    """The running deployment, once all of it serves.

    Raises:
        NoServicesError: its supervisor ended first.
    """
    begun = time.monotonic()
    while state.is_held():
        deployment = state.read()
        if deployment is not None and deployment.ready:
            if ORCHESTRATOR not in deployment.services:
                raise NoServicesError(f"{state.path} runs no orchestrator; restart it with `troupe up`")
            return deployment
        await asyncio.sleep(_POLL_SECONDS)
    raise NoServicesError(f"the services of {state.path} ended after {time.monotonic() - begun:.0f} s of waiting")
