"""A call to every method of learner, engine and designer is cut off once, in each way that a death can cut it off.

The real run loop, between stand-ins that keep their contracts: per step one call loses its reply, or the part that was
called dies and comes back as it was at its start, or the orchestrator ends while it waits. Nobody resumes anything.
"""

from __future__ import annotations

import asyncio
import inspect
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import Enum
from pathlib import Path
from typing import Any

import grpc
import pytest
from orchestrated.learner import StandInLearner
from orchestrated.models import StandInDesigner, StandInPolicy, Weights
from orchestrated.world import Backends, World, math_task, world
from troupe.v1 import common_pb2, designer_pb2_grpc, learner_pb2_grpc, policy_pb2_grpc, training_pb2
from troupe_contracts.errors import Unavailable
from troupe_contracts.fence import FenceGuard
from troupe_contracts.server import start
from troupe_contracts.settings import ServiceSettings
from troupe_learner.ledger import Ledger
from troupe_orchestrator.training import endurance
from troupe_orchestrator.training import learner as learner_client

pytestmark = [pytest.mark.long, pytest.mark.asyncio(loop_scope="session")]

TASKS = [math_task(f"task-{number}") for number in range(4)]
LEARNER = ("GetLearner", "SubmitBatch", "TrainStep", "WatchOperation", "Score", "ExportWeights", "SaveCheckpoint")
ENGINE = ("GetPolicy", "BeginUpdate", "StageWeights", "CommitUpdate", "Generate")
DESIGNER = ("ProposeDesigns",)
# What is called only after a learner died, and the call at which it dies first.
RECOVERY = (("TrainStep", "RestoreCheckpoint"), ("GetLearner", "RestoreCheckpoint"))


class Cut(Enum):
    """How a call is cut off."""

    REPLY_LOST = "it took effect, the answer is lost"
    DEATH = "who was called dies before it did anything"
    ORCHESTRATOR = "who called ends while it waits for the answer"


class Trap:
    """Cuts off the next call of a method."""

    def __init__(self) -> None:
        self._armed: list[tuple[str, Cut]] = []
        self.sprung = asyncio.Event()
        self.orchestrator_ends = asyncio.Event()
        self.die: dict[str, Callable[[], None]] = {}

    def arm(self, *cuts: tuple[str, Cut]) -> None:
        """For calls that come in this order."""
        self._armed = list(cuts)
        self.sprung.clear()

    def before(self, method: str) -> None:
        if self._next(method, Cut.DEATH):
            self.die[method]()
            raise Unavailable(f"killed in {method}")

    async def after(self, method: str) -> None:
        if self._next(method, Cut.REPLY_LOST):
            raise Unavailable(f"the reply of {method} is lost")
        if self._next(method, Cut.ORCHESTRATOR):
            self.orchestrator_ends.set()
            await asyncio.Event().wait()

    def _next(self, method: str, cut: Cut) -> bool:
        if self._armed[:1] != [(method, cut)]:
            return False
        del self._armed[0]
        if not self._armed:
            self.sprung.set()
        return True


def trapped(servicer: type, methods: tuple[str, ...]) -> type:
    """The servicer with a trap at the beginning and the end of these methods."""

    def wrap(name: str) -> Callable[..., Any]:
        method = getattr(servicer, name)

        async def unary(self: Any, request: Any, context: Any) -> Any:
            self.trap.before(name)
            if name == "SaveCheckpoint":
                # The orchestrator has removed the folder: it was not on record.
                self.checkpoints.pop(request.uri, None)
            answer = await method(self, request, context)
            await self.trap.after(name)
            return answer

        async def stream(self: Any, request: Any, context: Any) -> AsyncIterator[Any]:
            self.trap.before(name)
            async for message in method(self, request, context):
                yield message
            await self.trap.after(name)

        return stream if inspect.isasyncgenfunction(method) else unary

    return type(f"Trapped{servicer.__name__}", (servicer,), {name: wrap(name) for name in methods})


@asynccontextmanager
async def trapped_backends(trap: Trap) -> AsyncIterator[Backends]:
    """Stand-ins that can be cut off."""
    weights = Weights()
    parts = Backends(
        trapped(StandInPolicy, ENGINE)(weights),
        trapped(StandInDesigner, DESIGNER)(weights),
        trapped(StandInLearner, (*LEARNER, "RestoreCheckpoint", "BindRun"))(),
    )
    for part in (parts.policy, parts.designer, parts.learner):
        part.trap = trap  # type: ignore[attr-defined]

    def engine_dies() -> None:
        weights.version = common_pb2.PolicyVersion(lineage="engine", number=0)
        weights.begun = None

    def learner_dies() -> None:
        learner = parts.learner
        learner.ledger = Ledger("", next(learner._lineages))
        learner._initial = learner.ledger.version
        learner._fences = FenceGuard()
        learner._done.clear()
        learner.batches.clear()
        learner.bases.clear()

    trap.die |= dict.fromkeys((*LEARNER, "RestoreCheckpoint"), learner_dies)
    trap.die |= dict.fromkeys(ENGINE, engine_dies) | dict.fromkeys(DESIGNER, engine_dies)

    def register(server: grpc.aio.Server) -> None:
        policy_pb2_grpc.add_PolicyServicer_to_server(parts.policy, server)
        designer_pb2_grpc.add_DesignerServicer_to_server(parts.designer, server)
        learner_pb2_grpc.add_LearnerServicer_to_server(parts.learner, server)

    parts.running = await start(
        ServiceSettings(), register, [f"troupe.v1.{n}" for n in ("Policy", "Designer", "Learner")]
    )
    yield parts
    await parts.stop()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endurance, "_FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(learner_client, "_RECONNECT_SECONDS", 0.01)


def committed(folder: Path) -> int:
    with sqlite3.connect(folder / "data" / "troupe.db") as connection:
        return int(connection.execute("select count(*) from steps where state = 'committed'").fetchone()[0])


def sealed(folder: Path) -> list[str]:
    with sqlite3.connect(folder / "data" / "troupe.db") as connection:
        return [row[0] for row in connection.execute("select digest from batches order by update_number")]


CASES: tuple[tuple[tuple[str, Cut], ...], ...] = (
    *(((method, cut),) for method in (*LEARNER, *ENGINE, *DESIGNER) for cut in (Cut.REPLY_LOST, Cut.DEATH)),
    *(((first, Cut.DEATH), (then, Cut.REPLY_LOST)) for first, then in RECOVERY),
    *(((first, Cut.DEATH), (then, Cut.DEATH)) for first, then in RECOVERY),
)


async def check(opened: World) -> None:
    """The learner has applied what is sealed, from the first on."""
    digests = [step.digest.hex() for step in opened.backends.learner.applied]
    assert digests == sealed(opened.folder)[: len(digests)]


async def one_more_step(opened: World, before: int) -> None:
    async with asyncio.timeout(30):
        while committed(opened.folder) <= before:
            run = await opened.get_run()
            assert run.state == training_pb2.RUN_STATE_RUNNING, run.reason
            await asyncio.sleep(0.01)


async def test_a_run_goes_on_over_every_call_that_is_cut_off(tmp_path: Path, sandbox: str) -> None:
    trap = Trap()
    steps = len(CASES) * 3
    async with (
        trapped_backends(trap) as parts,
        world(tmp_path, parts, sandbox, learner=True, patience_seconds=20.0) as opened,
    ):
        config = opened.config(
            TASKS, steps=steps, stages=[{"train": "both", "steps": steps}], checkpoint={"every": 1, "keep": 2}
        )
        await opened.training.CreateRun(training_pb2.CreateRunRequest(run_id="run", config=config))
        await one_more_step(opened, 0)
        for case in CASES:
            trap.arm(*case)
            try:
                async with asyncio.timeout(20):
                    await trap.sprung.wait()
            except TimeoutError:
                run = await opened.get_run()
                pytest.fail(f"{case} did not come, the run is {run.state}: {run.reason}")
            await one_more_step(opened, committed(tmp_path))
            await check(opened)
        await opened.training.PauseRun(training_pb2.PauseRunRequest(run_id="run"))
        await check(opened)
        assert len(parts.learner.applied) == len(sealed(tmp_path))
        assert parts.policy.weights.version == parts.learner.version


async def test_a_run_goes_on_in_another_orchestrator_over_every_call_that_it_was_cut_off_in(
    tmp_path: Path, sandbox: str
) -> None:
    trap = Trap()
    methods = (*LEARNER, *ENGINE, *DESIGNER)
    steps = len(methods) * 3
    async with trapped_backends(trap) as parts:
        for number, method in enumerate(methods):
            async with world(tmp_path, parts, sandbox, learner=True, patience_seconds=20.0) as opened:
                if number == 0:
                    stages = [{"train": "both", "steps": steps}]
                    config = opened.config(TASKS, steps=steps, stages=stages, checkpoint={"every": 1, "keep": 2})
                    await opened.training.CreateRun(training_pb2.CreateRunRequest(run_id="run", config=config))
                await one_more_step(opened, committed(tmp_path))
                await check(opened)
                trap.orchestrator_ends.clear()
                trap.arm((method, Cut.ORCHESTRATOR))
                async with asyncio.timeout(20):
                    await trap.orchestrator_ends.wait()
        async with world(tmp_path, parts, sandbox, learner=True, patience_seconds=20.0) as opened:
            await one_more_step(opened, committed(tmp_path))
            await opened.training.PauseRun(training_pb2.PauseRunRequest(run_id="run"))
            await check(opened)
            assert len(parts.learner.applied) == len(sealed(tmp_path))
            assert parts.policy.weights.version == parts.learner.version
