"""Learners as real processes."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import grpc
from troupe.v1 import learner_pb2
from troupe_contracts.channel import connect

from learning.client import Client

_START_SECONDS = 240


@dataclass
class Learner:
    """A learner process and its addresses."""

    process: subprocess.Popen[bytes]
    target: str
    work_dir: Path
    log: Path

    def rank_pids(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(each) for each in children.read_text().split()]

    def client(self) -> grpc.aio.Channel:
        return connect(self.target)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def launch(folder: Path, model: Path, **settings: object) -> subprocess.Popen[bytes]:
    """`python -m troupe_learner` with TROUPE_ settings given as keywords; does not wait."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TROUPE_")}
    given = {
        "model": model,
        "work_dir": folder / "work",
        "ready_file": folder / "ready.json",
        "die_with_parent": "true",
        "log_format": "console",
    } | settings
    environment |= {f"TROUPE_{name.upper()}": str(value) for name, value in given.items()}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-m", "troupe_learner"], env=environment, stdout=log, stderr=log)


def serving(process: subprocess.Popen[bytes], folder: Path, work_dir: Path) -> Learner:
    """The learner that `launch` began in `folder`, once it serves."""
    ready = folder / "ready.json"
    give_up = time.monotonic() + _START_SECONDS
    while not ready.exists():
        assert process.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < give_up, (folder / "log").read_text()
        time.sleep(0.05)
    return Learner(process, json.loads(ready.read_text())["target"], work_dir, folder / "log")


async def kill_rank(learner: Learner, client: Client, number: int = 0) -> None:
    """Kills a rank, and waits until the front knows."""
    os.kill(learner.rank_pids()[number], signal.SIGKILL)
    while (await client.get()).state != learner_pb2.GANG_STATE_RESTARTING:
        await asyncio.sleep(0.01)
