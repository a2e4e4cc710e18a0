"""A learner on two nodes: its front and its agent as two processes of this machine, which meet on loopback."""

import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from learning.ports import free_port
from learning.process import Learner, launch, serving

_START_SECONDS = 240
DEEPSPEED: dict[str, object] = {
    "engine": "deepspeed",
    "tokens_per_microbatch": 200,
    # A large epsilon keeps AdamW's step proportional to the gradient: otherwise rounding in gradients near zero, divided
    # by their own size, is all that a comparison of one rank with two sees.
    "adam_eps": 1e-2,
}


@dataclass
class Nodes:
    """Both, and whatever was started in their place."""

    folder: Path
    model: Path
    settings: dict[str, object]
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    agent: subprocess.Popen[bytes] = field(init=False)
    front: Learner = field(init=False)

    @classmethod
    def start(cls, folder: Path, model: Path, **settings: object) -> "Nodes":
        """Both, ready."""
        address = f"127.0.0.1:{free_port()}"
        gang = {"nodes": 2, "gang_address": address, "gang_interface": "lo"}
        nodes = cls(folder, model, DEEPSPEED | gang | settings)
        nodes.start_agent()
        nodes.start_front()
        return nodes

    def start_front(self) -> None:
        """Another front at the same addresses, with the same folder; waits until it serves."""
        folder = self.folder / "front"
        (folder / "ready.json").unlink(missing_ok=True)
        settings = self.settings | {"machine": "machine-0", "lineage": "first"}
        process = launch(folder, self.model, **settings)
        self.started.append(process)
        self.front = serving(process, folder, folder / "work")

    def start_agent(self, name: str = "agent", **settings: object) -> subprocess.Popen[bytes]:
        """Another agent, which waits for its turn; as the gang's own, if it has its name."""
        given = self.settings | {"node_rank": 1, "machine": "machine-1"} | settings
        process = launch(self.folder / name, self.model, **given)
        self.started.append(process)
        if name == "agent":
            self.agent = process
        return process

    def log_of(self, name: str) -> str:
        return (self.folder / name / "log").read_text()

    def says(self, name: str, text: str) -> None:
        """Waits until a log has a text."""
        give_up = time.monotonic() + _START_SECONDS
        while text not in self.log_of(name):
            assert time.monotonic() < give_up, self.log_of(name)
            time.sleep(0.05)

    def remote_rank(self) -> psutil.Process:
        (rank,) = psutil.Process(self.agent.pid).children()
        return rank

    def local_rank(self) -> psutil.Process:
        (rank,) = psutil.Process(self.front.process.pid).children()
        return rank

    def stop(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.terminate()
        for process in self.started:
            process.wait(30)


def is_gone(process: psutil.Process) -> bool:
    """Whether it has ended; one that nobody has waited for counts."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def ends(process: psutil.Process) -> None:
    """Waits for its end."""
    give_up = time.monotonic() + 60
    while not is_gone(process):
        assert time.monotonic() < give_up, process
        time.sleep(0.01)


def largest_difference(left: dict[str, bytes], right: dict[str, bytes]) -> float:
    """Over all weights, of type float32."""

    def values(stored: dict[str, bytes]) -> Any:
        return np.concatenate([np.frombuffer(stored[name], np.float32) for name in sorted(left)])

    assert left.keys() == right.keys()
    return float(np.abs(values(left) - values(right)).max())
