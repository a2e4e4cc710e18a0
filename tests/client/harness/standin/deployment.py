"""Local deployments of stand-in services, and a check that nothing of them is left."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from troupe_client.processes import TAG
from troupe_client.state import Deployment, StateFolder

Found = TypeVar("Found")

_HARNESS = Path(__file__).parent.parent
PYTHON_PATH = f"{_HARNESS / 'programs'}:{_HARNESS}"
TROUPE = (sys.executable, "-m", "troupe_client")


def write_profile(folder: Path, **changes: dict[str, Any]) -> Path:
    """A profile of stand-ins; `changes` are merged into its sections, None removes one."""
    environment = {"environment": {"PYTHONPATH": PYTHON_PATH}}
    profile: dict[str, Any] = {
        "name": "stand-ins",
        "executor": {"engine": "vllm", "model": "model", "policy_id": "starter", "context_length": 512},
        "designer": {"engine": "remote", "policy_id": "starter"},
        "learner": {"engine": "torch"},
        "sandbox": {"workflow_slots": 4, "test_slots": 1},
        "orchestrator": {},
    }
    for name, section in profile.items():
        if isinstance(section, dict):
            section.update(environment | changes.get(name, {}))
    profile |= {name: change for name, change in changes.items() if name not in profile}
    path = folder / "profile.yaml"
    path.write_text(yaml.safe_dump(profile))
    return path


def troupe(*arguments: object, **options: Any) -> "subprocess.CompletedProcess[str]":
    """The command, run to its end."""
    environment = {**os.environ, "COLUMNS": "160"}
    return subprocess.run(
        [*TROUPE, *map(str, arguments)], capture_output=True, text=True, timeout=60, env=environment, **options
    )


@dataclass(frozen=True)
class Command:
    """The command under way, and the state folder that it works in."""

    process: "subprocess.Popen[str]"
    state: StateFolder

    def deployment(self, condition: Callable[[Deployment], bool]) -> Deployment:
        """The deployment once it is as wanted."""
        return until(lambda: self._deployment_if(condition))

    def end(self, signum: signal.Signals) -> tuple[float, str]:
        """Sends a signal; seconds until the command has ended, and what it wrote to stderr."""
        begun = time.monotonic()
        self.process.send_signal(signum)
        _, errors = self.process.communicate(timeout=30)
        return time.monotonic() - begun, errors

    def _deployment_if(self, condition: Callable[[Deployment], bool]) -> Deployment | None:
        assert self.process.poll() is None, self.process.communicate()
        deployment = self.state.read()
        return deployment if deployment is not None and condition(deployment) else None


def until(look: Callable[[], Found | None], seconds: float = 30) -> Found:
    """What `look` returns once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


def left_of(deployment: Deployment) -> list[str]:
    """Everything of a deployment that is still there."""
    left = [f"process {process.pid}" for process in deployment.processes() if process.alive()]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            if f"{TAG}={deployment.tag}".encode() in environment.split(b"\0"):
                left.append(f"tagged process {entry.name}")
    for service in deployment.services.values():
        for address in filter(None, (service.target, service.metrics)):
            with socket.socket() as probe:
                host, port = address.rsplit(":", 1)
                if probe.connect_ex((host, int(port))) == 0:
                    left.append(f"port {address}")
    return left
