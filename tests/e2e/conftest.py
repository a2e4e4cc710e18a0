"""All five services as real processes, each of which a test can kill and start again."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from troupe_client.profile import Profile, load_profile
from troupe_client.wiring import Folders, Purpose, launch, needs, own_environment, services_of

START_SECONDS = 180.0


class Stack:
    """The services of a profile. Starts each in a process group of its own, and ends all of them."""

    def __init__(self, profile: Profile, state: Path) -> None:
        self._profile = profile
        self._folders = Folders(state.resolve())
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        for folder in ("run", "logs", "work"):
            (state / folder).mkdir(parents=True, exist_ok=True)

    def start_all(self) -> None:
        """Start everything that training needs."""
        names = list(services_of(self._profile, Purpose.TRAINING))
        pending = list(names)
        while pending:
            ready = [name for name in pending if needs(name, names, self._profile) <= self._serving()]
            for name in ready:
                self.start(name)
            pending = [name for name in pending if name not in ready]
            if not ready:
                time.sleep(0.1)
        for name in names:
            self.target(name)

    def start(self, name: str) -> None:
        """Start one service; `target` waits until it serves."""
        ready = self._folders.ready_file(name)
        ready.unlink(missing_ok=True)
        names = services_of(self._profile, Purpose.TRAINING)
        targets = {other: self.target(other) for other in needs(name, names, self._profile)}
        todo = launch(name, self._profile, self._folders, targets, own_environment())
        with self._folders.log(name).open("ab") as log:
            self._processes[name] = subprocess.Popen(
                todo.command, env=dict(todo.environment), stdout=log, stderr=log, start_new_session=True
            )

    def target(self, name: str) -> str:
        """Where a service listens, once it serves."""
        give_up = time.monotonic() + START_SECONDS
        ready = self._folders.ready_file(name)
        while time.monotonic() < give_up:
            if ready.exists():
                return str(json.loads(ready.read_text())["target"])
            if self._processes[name].poll() is not None:
                pytest.fail(f"{name} ended with {self._processes[name].returncode}:\n{self.log(name)}")
            time.sleep(0.05)
        pytest.fail(f"{name} did not serve within {START_SECONDS} s:\n{self.log(name)}")

    def kill(self, name: str) -> None:
        """SIGKILL, and wait until it is gone."""
        process = self._processes.pop(name)
        process.kill()
        process.wait()
        self._folders.ready_file(name).unlink(missing_ok=True)

    def log(self, name: str) -> str:
        """The end of a service's log."""
        return self._folders.log(name).read_text(errors="replace")[-4000:]

    def stop(self) -> None:
        """End everything."""
        for process in self._processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self._processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _serving(self) -> set[str]:
        return {name for name in self._processes if self._folders.ready_file(name).exists()}


@pytest.fixture
def stack(starter: Path, tmp_path: Path) -> Iterator[Stack]:
    """All services on that policy, in a state folder of their own."""
    stack = Stack(load_profile(starter / "profile.yaml"), tmp_path / "state")
    try:
        stack.start_all()
        yield stack
    finally:
        stack.stop()
