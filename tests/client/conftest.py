"""Fixtures around local deployments of stand-in services."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from troupe_client.processes import SHARED_MEMORY
from troupe_client.state import StateFolder

sys.path.insert(0, str(Path(__file__).parent / "harness"))

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
