"""Which cluster a command was told, for the whole of its life."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from troupe_contracts.identity import Identity, assume, own

if TYPE_CHECKING:
    from troupe_kubernetes.api import Api


class NoDeploymentError(RuntimeError):
    """There is no deployment to talk to; the text says what is there, and what to do."""


@dataclass(frozen=True, slots=True)
class ClusterPlace:
    """A namespace of a cluster."""

    context: str | None = None
    """Of the kubeconfig; its current one unless given."""
    namespace: str | None = None
    """The context's unless given."""


_chosen: ClusterPlace | None = None


def choose(place: ClusterPlace | None) -> None:
    """Have this process's commands use a cluster; None is this machine."""
    global _chosen
    _chosen = place


def chosen() -> ClusterPlace | None:
    """What the command was told."""
    return _chosen


@asynccontextmanager
async def open_api(place: ClusterPlace) -> AsyncIterator[Api]:
    """The API server, for a block.

    Raises:
        NoDeploymentError: the kubeconfig does not say where it is; or, in the block, it refuses or does not answer.
    """
    # Here, since the API's client takes a second to import, which only commands with a cluster need.
    from troupe_kubernetes.api import Api, ApiError, ApiUnreachableError, ClusterConfigError

    try:
        yield await asyncio.to_thread(Api.from_kubeconfig, place.context, place.namespace)
    except (ApiError, ApiUnreachableError, ClusterConfigError) as error:
        raise NoDeploymentError(str(error)) from error


def identity_for(service: str) -> Identity:
    """Our credentials, for a service that is reached through a forwarded port: its certificate has the Service's name, and
    not that of loopback.
    """
    mine = own()
    return replace(mine, server_name=service) if mine.tls and mine.server_name is None else mine


async def assume_role(api: Api, role: str) -> None:
    """Show the deployment's own token of a role, where no other was given and this user may read it."""
    from troupe_kubernetes.api import ApiError

    if own().token is not None:
        return
    try:
        secret = await asyncio.to_thread(api.get, api.namespaced("v1", "secrets", f"{role}-token"))
    except ApiError:
        # A deployment without tokens, or a user who brings one.
        return
    assume(replace(own(), token=base64.b64decode(secret["data"]["token"]).decode().strip()))
