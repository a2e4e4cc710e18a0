"""A run on the cluster that something is done to, and what has to be so afterwards."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager

import yaml
from killing import checks
from killing.record import Record, Step
from killing.run import PROBE_BOUND, TASKS, small
from troupe.v1 import training_pb2
from troupe_client.sdk import Client
from troupe_contracts.access import Role
from troupe_contracts.identity import NOBODY, assume, own
from troupe_orchestrator.datasets.loading import load
from troupe_orchestrator.training.learner import STALL_SECONDS, LearnerClient

from deployed.containers import signal_ranks, watched
from deployed.installation import Installation
from deployed.matrix import ROWS, Row

STEP_SECONDS = 600.0
STEP_TASKS = 16
"""So many that a rollout takes longer than a pod's end, and what is aimed at it hits it."""
ENDLESS = 400
"""Steps: more than there is time for."""
_TRIES = 3
_POLL_SECONDS = 0.02
_LOOK_SECONDS = 0.5
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
        self,
        fault: str,
        inject: Callable[[], object],
        *states: str,
        ended: str = "",
        lands: Collection[str] = (),
        held: bool = False,
    ) -> Row:
        """Does something in a step that is in one of the states (rolling, unless given), waits until a step is committed
        that began after it, and checks what was learned so far.

        Args:
            ended: component of which a container ends by it; the fault falls into the step of that moment.
            lands: states of that step that count. Where the fault fell into another, it is tried again.
            held: the learner's ranks are stopped in the rollout before, so that a step that is sealed stays so until the
                fault has fallen.
        """
        missed: list[str] = []
        for _ in range(_TRIES):
            row = await self._survived(fault, inject, states or ("rolling",), ended, held)
            if not lands or row.state in lands:
                ROWS.append(row)
                return row
            missed.append(row.state)
        raise AssertionError(f"{fault}: fell into steps that were {', '.join(missed)}, not {' or '.join(lands)}")

    async def _survived(
        self, fault: str, inject: Callable[[], object], states: Sequence[str], ended: str, held: bool
    ) -> Row:
        before = self.installation.containers(ended) if ended else frozenset()
        with watched(self.installation.inside_each(ended) if ended else ()) as has_ended:
            if held:
                await self._hold()
            await self.at(*states)
            await asyncio.to_thread(inject)
            deadline = time.monotonic() + STEP_SECONDS
            while ended and not has_ended():
                assert time.monotonic() < deadline, f"{fault}: no container of {ended} ends"
                await asyncio.sleep(_POLL_SECONDS)
            begun = time.monotonic()
            step = self.record.newest()
        if held:
            await asyncio.to_thread(signal_ranks, self.installation, "SIGCONT")
        while ended and before <= self.installation.containers(ended):
            assert time.monotonic() < deadline, f"{fault}: the containers of {ended} are the same"
            await asyncio.sleep(_POLL_SECONDS)
        await self.committed(step.number + 1)
        row = Row(fault, step.state, time.monotonic() - begun)
        await self.check()
        return row

    async def _hold(self) -> None:
        """Stops the learner's ranks while a step is rolled out; at any other time it could not come to be sealed."""
        while True:
            await self.at("rolling")
            await asyncio.to_thread(signal_ranks, self.installation, "SIGSTOP")
            if self.record.newest().state == "rolling":
                return
            await asyncio.to_thread(signal_ranks, self.installation, "SIGCONT")

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
        told = [event.condition for event in (await self._run()).recent_events if event.HasField("condition")]
        return [f"{each.reason}: {each.message}" for each in told]

    async def told(self, *reasons: str) -> list[str]:
        """Waits until the run's record names one of these reasons; the conditions that do."""
        deadline = time.monotonic() + STEP_SECONDS
        while True:
            conditions = await self.conditions()
            found = [each for each in conditions if each.startswith(reasons)]
            if found:
                return found
            assert time.monotonic() < deadline, f"nothing of {reasons} is told: {conditions}"
            await asyncio.sleep(_LOOK_SECONDS)

    async def waits(self) -> str:
        """What the run waits for, or why it does not run; empty while it goes on."""
        return (await self._run()).reason

    async def formed_ranks_anew(self, before: int) -> None:
        """The learner's process lived on and has a newer generation of ranks than `before`, and the run was told of it."""
        assert (await self.installation.learner()).generation > before
        await self.told("LearnerGeneration")

    async def end(self) -> None:
        """Has it pause after the step that is under way; the weights are then those of the sealed batches, applied from the
        first on. For runs of more steps than there is time for.
        """
        await asyncio.to_thread(self.installation.wait)
        async with self._client() as client:
            await client.pause_run(self.run_id)
        await self._ended("paused")

    async def finish(self) -> None:
        """Has it end by itself after its last step; checks the same as `end`."""
        await self._ended("succeeded")

    async def _ended(self, wanted: str) -> None:
        deadline = time.monotonic() + STEP_SECONDS
        while (state := self.record.run_state())[0] not in (*_ENDED, "paused"):
            assert time.monotonic() < deadline, f"the run does not end: {state}, {self.record.newest()}"
            await asyncio.sleep(_POLL_SECONDS)
        assert state[0] == wanted, state
        await self.check()
        await checks.engines_are_at_the_learner(self.installation, self.record, PROBE_BOUND)
        learner = await LearnerClient.connect(self.installation.target("learner"), STALL_SECONDS)
        await checks.engine_at_speaks_as(self.installation.target("executor"), learner, PROBE_BOUND)
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

    def _client(self) -> Client:
        return Client(self.installation.target("orchestrator"), self.installation.identity(Role.CLIENT))

    async def _run(self) -> training_pb2.Run:
        async with self._client() as client:
            return await client.get_run(self.run_id)

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
        run = await client.create_run(small(config, steps, 0, STEP_TASKS))
    record = Record(installation.store, run.run_id, installation.folder / run.run_id / "batches")
    return ClusterRun(installation, run.run_id, record, [task.task_id for task in dataset.tasks[:TASKS]])


@asynccontextmanager
async def running(installation: Installation, steps: int = ENDLESS) -> AsyncIterator[ClusterRun]:
    """As `begun`; the run is cancelled if the block ends before it."""
    run = await begun(installation, steps)
    try:
        yield run
    finally:
        if run.record.run_state()[0] not in _ENDED:
            async with Client(installation.target("orchestrator"), installation.identity(Role.CLIENT)) as client:
                await client.cancel_run(run.run_id)
