"""Fixtures around local deployments of stand-in services, and what bad lines name."""

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from troupe_client.processes import SHARED_MEMORY
from troupe_client.state import StateFolder

sys.path.insert(0, str(Path(__file__).parent / "harness"))

from refusable.place import Place, write_files
from standin.deployment import TROUPE, Command, troupe


@pytest.fixture
def start_command() -> Iterator[Callable[..., Command]]:
    """Starts commands, and kills at the end what a failed test has left of them."""
    commands: list[Command] = []

    def start(*arguments: object, state: Path) -> Command:
        process = subprocess.Popen(
            [*TROUPE, *map(str, arguments), "--state", str(state)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        commands.append(Command(process, StateFolder(state)))
        return commands[-1]

    yield start
    for command in commands:
        if command.process.poll() is None:
            command.process.kill()
            command.process.communicate()
        troupe("down", "--state", command.state.path)


@pytest.fixture
def shared_memory_unchanged() -> Iterator[None]:
    """Fails when the test leaves segments of Python's in /dev/shm."""
    before = set(SHARED_MEMORY.glob("psm_*"))
    yield
    assert set(SHARED_MEMORY.glob("psm_*")) <= before


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory, start_service: Callable[..., Any]) -> Iterator[Place]:
    """A real orchestrator without engines, a stand-in of another service, and files of all kinds."""
    folder = tmp_path_factory.mktemp("bad")
    write_files(folder)
    orchestrator = start_service(
        "orchestrator", ["-m", "troupe_orchestrator"], {"TROUPE_DATA_DIR": str(folder / "data")}
    )
    stand_in = start_service(
        "executor",
        [str(Path(__file__).parent / "harness" / "programs" / "troupe_executor" / "__main__.py")],
        {
            "TROUPE_ENGINE": "openai",
            "TROUPE_POLICY_ID": "p",
            "TROUPE_REPLICA_ID": "r",
            "PYTHONPATH": str(Path(__file__).parent / "harness"),
        },
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield Place(folder, orchestrator().target, stand_in().target, f"127.0.0.1:{silent.getsockname()[1]}")


@pytest.fixture
def nothing_is_left_behind(tmp_path: Path) -> Iterator[None]:
    """No process, no shared memory, no running deployment."""
    before = set(SHARED_MEMORY.iterdir())
    children = set(psutil.Process().children(recursive=True))
    yield
    assert set(psutil.Process().children(recursive=True)) <= children
    assert set(SHARED_MEMORY.glob("psm_*")) <= before
    assert not StateFolder(tmp_path / "state").is_held()
    assert StateFolder(tmp_path / "state").read() is None
