"""A run whose engines are the addresses of a name, which change while it is under way."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from orchestrated.engine import start_engine
from orchestrated.world import Backends, math_task, world
from troupe.v1 import training_pb2
from troupe_orchestrator import host_names
from troupe_orchestrator.host_names import Host

pytestmark = pytest.mark.asyncio(loop_scope="session")

TASKS = [math_task(f"t{number}") for number in range(4)]


async def test_engines_may_come_and_go_with_the_addresses_of_a_name(
    tmp_path: Path, stand_ins: Backends, sandbox: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_names, "_LOOK_SECONDS", 0.01)
    replaced = asyncio.Event()

    async def replace() -> None:
        if first.policy.weights.version.number == 1 and not replaced.is_set():
            replaced.set()
            addresses["engines"] = frozenset({second.running.target})
            # The turn goes on; that of the one which has no address any more, too.
            await asyncio.sleep(0.05)

    async def play() -> None:
        pass

    first, second = await start_engine(replace), await start_engine(play)
    addresses = {"engines": frozenset({first.running.target}), "sandboxes": frozenset({sandbox})}

    def look_up(host: Host) -> frozenset[str]:
        return addresses[host.name]

    monkeypatch.setattr(Host, "look_up", look_up)
    names = {"executor": "dns:///engines:1", "designer": "dns:///engines:1"}
    async with world(tmp_path, stand_ins, "dns:///sandboxes:1", learner=True, **names) as one:
        events = await one.run(one.config(TASKS, steps=3, stages=[{"train": "both", "steps": 3}]))
        run = await one.get_run()
    assert run.state == training_pb2.RUN_STATE_SUCCEEDED, run.reason
    committed = [event.step_committed for event in events if event.WhichOneof("event") == "step_committed"]
    assert [step.metrics["tasks_dropped"] for step in committed] == [0.0, 0.0, 0.0]
    assert [step.metrics["success"] for step in committed] == [0.5, 0.5, 0.5]
    assert replaced.is_set()
    # It had the weights before its first turn, and the other got nothing of the third step.
    assert second.versions
    assert 0 not in second.versions
    assert 2 not in first.versions
    for engine in (first, second):
        await engine.running.drain(0)
