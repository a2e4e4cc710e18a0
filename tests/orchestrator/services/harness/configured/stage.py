"""An orchestrator between stand-ins, on which one config after another is tried, and what a run of each does."""

from __future__ import annotations

import contextlib
import copy
import itertools
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import yaml
from orchestrated.models import right_unless_guessed
from orchestrated.sandbox import StandInSandbox
from orchestrated.world import World, backends, lines, math_task, world
from troupe.v1 import policy_pb2, sandbox_pb2_grpc, training_pb2
from troupe_contracts.server import start
from troupe_contracts.settings import ServiceSettings
from troupe_orchestrator.tree import Tree

CODE = {
    "id": "code",
    "task_type": "code",
    "question": "Print 42. (code)",
    "tests": {"stdin": [["1\n", "42\n"]]},
}
TASKS = [CODE, math_task("one"), math_task("two"), math_task("faulty"), math_task("beyond the limit")]
HELD = [math_task("held-one"), math_task("held-two")]
TIMED = re.compile(r"seconds|tokens_per_second|utili[sz]ation|busy|latency")
_NAMES = re.compile(r"\b[0-9a-f]{20}\b|run-\d+|start(~\d+)?\b")


@dataclass
class Stage:
    """One orchestrator between stand-ins, on which one config after another is tried."""

    world: World
    sandbox: StandInSandbox
    runs: Iterator[int] = field(default_factory=itertools.count)
    trees: list[Tree] = field(default_factory=list)
    """Of a step of the undisturbed run."""

    def begin_again(self) -> None:
        parts = self.world.backends
        parts.designer.begin_again()
        parts.policy.requests.clear()
        parts.policy.probe_bounds.clear()
        parts.learner.optimizations.clear()
        parts.learner.batches.clear()
        self.sandbox.begin_again()


@contextlib.asynccontextmanager
async def stage(folder: Path, **settings: object) -> AsyncIterator[Stage]:
    folder.mkdir(exist_ok=True)
    for name, rows in (("train.jsonl", TASKS), ("held.jsonl", HELD)):
        (folder / name).write_text(lines(*rows))
    async with backends() as parts, sandbox_stand_in() as (sandbox, target):
        parts.policy.reply = reply
        # Its faults are ours: it is dropped, and quarantined.
        parts.designer.scripts[str(math_task("faulty")["question"])] = []
        async with world(folder, parts, target, learner=True, **settings) as opened:
            yield Stage(opened, sandbox)


@contextlib.asynccontextmanager
async def sandbox_stand_in() -> AsyncIterator[tuple[StandInSandbox, str]]:
    sandbox = StandInSandbox()

    def register(server: grpc.aio.Server) -> None:
        sandbox_pb2_grpc.add_SandboxServicer_to_server(sandbox, server)

    running = await start(ServiceSettings(), register, ["troupe.v1.Sandbox"])
    yield sandbox, running.target
    await running.drain(0)


def reply(request: policy_pb2.GenerateRequest) -> str:
    """Right or wrong by the script; a program for the task of code."""
    if any("(code)" in message.content for message in request.messages):
        return "<solution>\n42\n</solution>"
    return right_unless_guessed(request)


def located(config: dict[str, Any], folder: Path) -> str:
    """The config with its files where they are."""
    result = copy.deepcopy(config)
    result["dataset"]["train"] = str(folder / str(config["dataset"]["train"]))
    result["validation"]["dataset"] = str(folder / str(config["validation"]["dataset"]))
    return yaml.safe_dump(result)


def said(messages: Iterable[object]) -> list[str]:
    """What messages say, without names that belong to the run, in no order."""
    return sorted(_NAMES.sub("…", str(message)) for message in messages)


async def behaviour(stage: Stage, config: dict[str, Any]) -> dict[str, object]:
    """All that a run of this config does, or how it is refused."""
    stage.begin_again()
    opened, parts = stage.world, stage.world.backends
    run_id = f"run-{next(stage.runs)}"
    try:
        await opened.training.CreateRun(
            training_pb2.CreateRunRequest(run_id=run_id, config=located(config, opened.folder))
        )
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
            return {"refused": error.details()}
        raise
    events = await opened.run_events(run_id)
    run = await opened.get_run(run_id)
    return {
        "designer": said(parts.designer.requests),
        "executor": said(parts.policy.requests),
        "scripts": said(stage.sandbox.starts),
        "tests": said(stage.sandbox.tests),
        "replies": said(stage.sandbox.replies),
        "optimizations": [str(each) for each in parts.learner.optimizations],
        "batches": said(parts.learner.batches.values()),
        "probe bounds": set(parts.policy.probe_bounds),
        "saved": sorted(Path(uri).name for uri in parts.learner.checkpoints if f"/{run_id}/" in uri),
        "checkpoints": [saved.step for saved in run.checkpoints],
        "trees": len(list(Path(run.folder).rglob("trees*.parquet"))),
        "batch files": len(list(Path(run.folder).rglob("batch*.parquet"))),
        "ended": (run.state, run.reason, run.committed_steps),
        "events": [_event(event) for event in events],
    }


def _event(event: training_pb2.RunEvent) -> object:
    if event.HasField("step_committed"):
        told = event.step_committed
        metrics = {name: value for name, value in told.metrics.items() if not TIMED.search(name)}
        return event.step, told.stage, told.trains, sorted(metrics.items())
    if event.HasField("eval_finished"):
        return event.step, "validated"
    return event.step, str(event.condition.reason), event.state_changed.state
