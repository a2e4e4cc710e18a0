"""The real sandbox, started once, and orchestrators in this process between it and stand-ins for the models."""

import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

sys.path.insert(0, str(Path(__file__).parent / "harness"))

from orchestrated.world import Backends, World, backends, world
from troupe_orchestrator.rollout import task

OpenWorld = Callable[..., AbstractAsyncContextManager[World]]


@pytest.fixture(scope="session")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Target of a real sandbox."""
    folder = tmp_path_factory.mktemp("orchestrator-sandbox")
    ready = folder / "ready.json"
    command = [sys.executable, "-m", "troupe_sandbox", "--listen", "127.0.0.1:0", "--ready-file", str(ready)]
    command += ["--workflow-slots", "4", "--test-slots", "2", "--drain-seconds", "1", "--die-with-parent"]
    process = subprocess.Popen([*command, "--work-dir", str(folder), "--log", "warn"])
    give_up = time.monotonic() + 60
    while not ready.exists():
        assert process.poll() is None, "the sandbox did not start"
        assert time.monotonic() < give_up, "the sandbox does not serve"
        time.sleep(0.02)
    yield json.loads(ready.read_text())["target"]
    process.terminate()
    process.wait(30)


@pytest.fixture(autouse=True)
def _retries_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "_BACKOFF_SECONDS", 0.001)


@pytest_asyncio.fixture(loop_scope="session")
async def stand_ins() -> AsyncIterator[Backends]:
    """Stand-ins of the test's own."""
    async with backends() as parts:
        yield parts


@pytest.fixture
def open_world(tmp_path: Path, sandbox: str, stand_ins: Backends) -> OpenWorld:
    """Opens orchestrators on one store of the test's own, one after another."""
    return partial(world, tmp_path, stand_ins, sandbox)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shared(tmp_path_factory, sandbox: str) -> AsyncIterator[World]:
    """An orchestrator without a learner that the tests of a file share."""
    folder = tmp_path_factory.mktemp("orchestrator")
    async with backends() as parts, world(folder, parts, sandbox) as opened:
        yield opened
