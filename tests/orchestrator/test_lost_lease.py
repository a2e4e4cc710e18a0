"""An orchestrator whose lease another one took ends by itself."""

import asyncio
import signal
from pathlib import Path

from troupe_orchestrator.app import orchestrator
from troupe_orchestrator.settings import OrchestratorSettings
from troupe_orchestrator.store.database import Database


async def test_an_orchestrator_that_lost_its_store_is_told_to_end(tmp_path: Path) -> None:
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    try:
        async with orchestrator(OrchestratorSettings(data_dir=tmp_path, lease_seconds=0.6)) as stale:
            stale.database._renewal.cancel()  # as when its process was stopped for longer than the lease
            await asyncio.sleep(0.8)
            owner = await Database.open(f"sqlite+aiosqlite:///{tmp_path}/troupe.db", lease_seconds=30)
            stale.database._renewal = asyncio.create_task(stale.database._renew())
            await asyncio.wait_for(told.wait(), 5)
            await owner.close()
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
