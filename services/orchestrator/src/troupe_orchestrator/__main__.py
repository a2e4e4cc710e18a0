"""Starts the orchestrator: `python -m troupe_orchestrator`, configured by TROUPE_* (see settings)."""

import asyncio
import contextlib
import sys

import grpc
from troupe_contracts.errors import describe
from troupe_contracts.server import serve

from troupe_orchestrator.app import SERVICE_NAMES, orchestrator
from troupe_orchestrator.collector import look_seldom
from troupe_orchestrator.fleet import MismatchError
from troupe_orchestrator.kubernetes.addresses import NoClusterError
from troupe_orchestrator.run_config import ConfigError
from troupe_orchestrator.settings import OrchestratorSettings
from troupe_orchestrator.store.database import LeaseHeldError, StoreUnavailableError
from troupe_orchestrator.store.engine import StoreUrlError
from troupe_orchestrator.store.opening import StoreSchemaError

_CANNOT_START = (
    LeaseHeldError,
    StoreUnavailableError,
    StoreSchemaError,
    StoreUrlError,
    MismatchError,
    NoClusterError,
    ConfigError,
    OSError,
)


async def _run(settings: OrchestratorSettings) -> None:
    async with contextlib.AsyncExitStack() as stack:

        async def register(server: grpc.aio.Server) -> None:
            (await stack.enter_async_context(orchestrator(settings))).register(server)

        await serve("orchestrator", settings, register, SERVICE_NAMES, on_drain=stack.aclose)


def main() -> None:
    """Serve until told to stop; what cannot be started is one line and exit status 1."""
    settings = OrchestratorSettings.load()
    look_seldom()
    try:
        asyncio.run(_run(settings))
    except _CANNOT_START as error:
        sys.exit(f"orchestrator: {error}")
    except grpc.RpcError as error:
        sys.exit(f"orchestrator: {describe(error)}")


if __name__ == "__main__":
    main()
