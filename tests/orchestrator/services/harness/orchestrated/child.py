"""An orchestrator as a process of its own, between stand-ins of this one; for tests that kill it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import yaml
from troupe.v1 import evaluation_pb2_grpc, training_pb2_grpc
from troupe_contracts.channel import connect

from orchestrated.world import Backends

_START_SECONDS = 60


class Child:
    """A served orchestrator that can be killed."""

    def __init__(self, process: subprocess.Popen[bytes], target: str) -> None:
        self.process = process
        self.target = target
        channel = connect(target)
        self.training: training_pb2_grpc.TrainingAsyncStub = training_pb2_grpc.TrainingStub(channel)
        self.evaluation: evaluation_pb2_grpc.EvaluationAsyncStub = evaluation_pb2_grpc.EvaluationStub(channel)

    def kill(self) -> None:
        """SIGKILL: nothing of it runs on."""
        self.process.kill()
        self.process.wait()


@contextlib.asynccontextmanager
async def child(
    folder: Path,
    parts: Backends,
    sandbox: str,
    learner: bool = False,
    listen: str = "127.0.0.1:0",
    designers: Backends | None = None,
) -> AsyncIterator[Child]:
    """An orchestrator process on the store in `folder`; killed at the end, if it was not before.

    Args:
        designers: the designer's own engine and learner; without them it shares those of `parts`.
    """
    folder.mkdir(exist_ok=True)
    ready = folder / f"ready-{uuid.uuid4().hex[:8]}.json"
    serving = folder / "serving.yaml"
    serving.write_text(yaml.safe_dump({"max_attempts": 2, "budgets": {"cpu_seconds": 1.0}}))
    settings = {
        "data_dir": folder / "data",
        "designer": parts.target if designers is None else designers.target,
        "designer_learner": "" if designers is None else designers.target,
        "executor": parts.target,
        "sandbox": sandbox,
        "learner": parts.target if learner else "",
        "serving": serving,
        "listen": listen,
        "ready_file": ready,
        "lease_seconds": 1,
        "die_with_parent": "true",
        "log_level": "error",
    }
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    environment |= {f"TROUPE_{name.upper()}": str(value) for name, value in settings.items() if str(value)}
    process = subprocess.Popen([sys.executable, "-m", "troupe_orchestrator"], env=environment)
    try:
        async with asyncio.timeout(_START_SECONDS):
            while not ready.exists():
                assert process.poll() is None, "the orchestrator did not start"
                await asyncio.sleep(0.02)
        yield Child(process, json.loads(ready.read_text())["target"])
    finally:
        process.kill()
        process.wait()
