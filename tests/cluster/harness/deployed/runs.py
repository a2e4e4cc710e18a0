"""A run on the cluster that something is done to, and what has to be so afterwards."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import yaml
from killing import checks
from killing.record import Record, Step
from killing.run import PROBE_BOUND, TASKS, small
from troupe_client.sdk import Client
from troupe_contracts.access import Role
from troupe_contracts.identity import NOBODY, assume, own
from troupe_orchestrator.datasets.loading import load
from troupe_orchestrator.training.learner import STALL_SECONDS, LearnerClient

from deployed.installation import Installation
from deployed.matrix import ROWS, Row

STEP_SECONDS = 600.0
_POLL_SECONDS = 0.02
_ENDED = ("succeeded", "failed", "cancelled")


class ClusterRun:
    """Use `running`."""

    def __init__(self, installation: Installation, run_id: str, record: Record, task_ids: Sequence[str]) -> None:
        self.installation = installation
        self.run_id = run_id
        self.record = record
        self._task_ids = task_ids

    async def at(self, *states: str, after: int = 1) -> Step:
        """Waits until a step behind the first ones is in one of these states; rolling, with a group that is journalled."""
        deadline = time.monotonic() + STEP_SECONDS
        while True:
            step = self.record.newest()
            if step.number > after and step.state in states and (step.state != "rolling" or step.groups):
                return step
            self._expect_running()
            assert self.record.run_state()[0] not in _ENDED, f"the run ended before a step came to {states}: {step}"
            assert time.monotonic() < deadline, f"no step came to {states}: {step}"
            await asyncio.sleep(_POLL_SECONDS)

    async def survives(
        self, fault: str, inject: Callable[[], object], *states: str, ended: str = "", after: int = 1
    ) -> Row:
        """Does something in a step that is in one of the states (rolling, unless given), waits until the step that it fell
        into is committed, and checks what was learned so far.

        Args:
            ended: component of which a container ends by it; the fault falls into the step of that moment.
        """
        before = self.installation.containers(ended) if ended else frozenset()
        await self.at(*(states or ("rolling",)), after=after)
        await asyncio.to_thread(inject)
        while ended and before <= self.installation.containers(ended):
            self._expect_running()
        step, begun = self.record.newest(), time.monotonic()
        await self.committed(self.record.committed() + 1)
        row = Row(fault, step.state, time.monotonic() - begun)
        ROWS.append(row)
        await self.check()
        return row

    async def committed(self, step: int) -> None:
        deadline = time.monotonic() + STEP_SECONDS
        while self.record.committed() < step:
            assert self._expect_running() != "succeeded" or self.record.committed() >= step, "the run has too few steps"
            assert time.monotonic() < deadline, f"step {step} is not committed: {self.record.newest()}"
            await asyncio.sleep(_POLL_SECONDS)

    async def check(self) -> None:
        """What holds at any time in which all services serve."""
        await asyncio.to_thread(self.installation.wait)
        self.record.keep_batches()
        await checks.applied_is_sealed(self.installation, self.record)
        checks.tasks_are_the_epochs(self.record, self._task_ids, 0)

    async def conditions(self) -> list[str]:
        """What the run's record says of it, the newest last."""
        target, identity = self.installation.target("orchestrator"), self.installation.identity(Role.CLIENT)
        async with Client(target, identity) as client:
            run = await client.get_run(self.run_id)
        told = [event.condition for event in run.recent_events if event.HasField("condition")]
        return [f"{each.reason}: {each.message}" for each in told]

    async def finish(self) -> None:
        """Has it end by itself; the weights are then those of the sealed batches, applied from the first on."""
        deadline = time.monotonic() + STEP_SECONDS
        while (state := self.record.run_state())[0] not in _ENDED:
            assert time.monotonic() < deadline, f"the run does not end: {state}, {self.record.newest()}"
            await asyncio.sleep(_POLL_SECONDS)
        assert state[0] == "succeeded", state
        await self.check()
        await checks.engines_are_at_the_learner(self.installation, self.record, PROBE_BOUND)
        learner = await LearnerClient.connect(self.installation.target("learner"), STALL_SECONDS)
        tensors = await checks.weights(learner)
        profile = self.installation.learner_profile()
        folder = self.installation.folder / self.run_id / "replay"
        batches = self.record.keep_batches()
        deployments = own()
        assume(NOBODY)
        try:
            assert await checks.replayed(profile, batches, folder) == tensors
        finally:
            assume(deployments)

    def _expect_running(self) -> str:
        state, reason = self.record.run_state()
        assert state in ("", "queued", "running", "succeeded"), f"the run is {state}: {reason}"
        return state


async def begun(installation: Installation, steps: int) -> ClusterRun:
    """A run of so many small steps."""
    starter = installation.starter()
    config = yaml.safe_load((starter / "run.yaml").read_text())
    train = starter / "train.jsonl"
    dataset = load(train.name, train.read_bytes(), config["dataset"]["format"])
    config["dataset"] |= {"train": "/store/starter/train.jsonl"}
    await asyncio.to_thread(installation.wait)
    async with Client(installation.target("orchestrator"), installation.identity(Role.CLIENT)) as client:
        # They are read through a pod that may be away for a while.
        config["retention"] = {"batches": "all"}
        run = await client.create_run(small(config, steps, 0))
    record = Record(installation.store, run.run_id, installation.folder / run.run_id / "batches")
    return ClusterRun(installation, run.run_id, record, [task.task_id for task in dataset.tasks[:TASKS]])


@asynccontextmanager
async def running(installation: Installation, steps: int = 4) -> AsyncIterator[ClusterRun]:
    """As `begun`; the run is cancelled if the block ends before it."""
    run = await begun(installation, steps)
    try:
        yield run
    finally:
        if run.record.run_state()[0] not in _ENDED:
            async with Client(installation.target("orchestrator"), installation.identity(Role.CLIENT)) as client:
                await client.cancel_run(run.run_id)
