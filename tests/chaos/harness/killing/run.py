"""One run through many kills: a schedule of (victim, point), at most one to a step, and what came of each."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from troupe_client.profile import load_profile
from troupe_client.sdk import Client
from troupe_contracts.access import Role
from troupe_orchestrator.datasets.loading import load
from troupe_orchestrator.training.learner import STALL_SECONDS, LearnerClient

from killing import checks
from killing.deployment import Live, Victim, live
from killing.points import STEP_SECONDS, MissedError, Moment, Point
from killing.record import LocalStore, Record

RUN_ID = "chaos"
PROBE_BOUND = 0.05
TASKS = 60
RECOVERY_SECONDS = 15.0
"""In which the second kill of a volley comes: a learner or an executor takes about so long to be back."""
_TRIES = 4
Kill = tuple[Victim, Point]
MATRIX: tuple[Kill, ...] = tuple((victim, point) for point in Point for victim in Victim)


@dataclass(frozen=True)
class Outcome:
    """One kill."""

    what: str
    when: str
    step: int
    state: str
    """The step's, as it was killed."""
    seconds: float
    """Until a step was committed again."""


@dataclass(frozen=True)
class Ended:
    """A run that has ended."""

    record: Record
    tensors: checks.Hash


class Chaos:
    """A run in progress that is killed at. Use `chaos`."""

    def __init__(self, deployed: Live, record: Record, task_ids: Sequence[str], seed: int) -> None:
        self.live = deployed
        self.record = record
        self._task_ids = task_ids
        self._seed = seed

    async def kill(self, victim: Victim, point: Point) -> Outcome:
        """Kills at a point of the next step that comes to it, waits until that step is committed, and checks."""
        for _ in range(_TRIES):
            moment = Moment(self.live, self.record)
            try:
                step = await moment.at(point)
                begun = time.monotonic()
                await self.live.kill(victim)
            except (MissedError, LookupError) as missed:
                print(f"  missed: {victim.value} {point.value}: {missed}", flush=True)
                continue
            finally:
                moment.let_go()
            await self.committed(step.number)
            outcome = Outcome(victim.value, point.value, step.number, step.state, time.monotonic() - begun)
            await self.check()
            return outcome
        raise AssertionError(f"no step came to {point.value} in {_TRIES} tries")

    async def kill_at_any_time(self, volley: Sequence[tuple[Victim, float]]) -> Outcome:
        """Kills each after so many seconds, whatever is going on then: the second while all recovers from the first."""
        for victim, seconds in volley:
            await asyncio.sleep(seconds)
            # What is killed may be away for a moment, by the kill before it or by itself: only a kill that happened counts.
            async with asyncio.timeout(STEP_SECONDS):
                while True:
                    step = self.record.newest()
                    begun, committed = time.monotonic(), self.record.committed()
                    with suppress(LookupError):
                        await self.live.kill(victim)
                        break
                    await asyncio.sleep(0.05)
        await self.committed(committed + 1)
        what = " + ".join(victim.value for victim, _ in volley)
        when = " + ".join(f"{seconds:.1f} s" for _, seconds in volley)
        outcome = Outcome(what, f"after {when}", step.number, step.state, time.monotonic() - begun)
        await self.check()
        return outcome

    async def committed(self, step: int) -> None:
        """Returns when a step is committed and every service serves."""
        deadline = time.monotonic() + STEP_SECONDS
        while self.record.committed() < step:
            state, reason = self.record.run_state()
            assert state in ("running", "succeeded"), f"the run is {state} in step {self.record.newest()}: {reason}"
            assert time.monotonic() < deadline, f"step {step} is not committed: {self.record.newest()}"
            await asyncio.sleep(0.01)
        await self.live.all_serve()

    async def check(self) -> None:
        """What holds at any time."""
        self.record.keep_batches()
        await checks.applied_is_sealed(self.live, self.record)
        await checks.engine_comes_to_the_learner(self.live, self.record, PROBE_BOUND)
        checks.tasks_are_the_epochs(self.record, self._task_ids, self._seed)

    async def finish(self, replay: Path) -> Ended:
        """Has the run end by itself after its last step; checks everything, the weights by replay among it."""
        while (state := self.record.run_state())[0] == "running":
            await asyncio.sleep(0.05)
        assert state[0] == "succeeded", state
        return await self._ended(replay)

    async def pause(self, replay: Path) -> Ended:
        """Pauses the run after the step that is under way; checks the same."""
        target = self.live.service("orchestrator").target
        async with Client(target, self.live.identity(Role.CLIENT)) as client:
            await client.pause_run(RUN_ID)
        return await self._ended(replay)

    async def _ended(self, replay: Path) -> Ended:
        await self.live.all_serve()
        await self.check()
        await checks.engines_are_at_the_learner(self.live, self.record, PROBE_BOUND)
        learner = await LearnerClient.connect(self.live.service("learner").target, STALL_SECONDS)
        await checks.engine_at_speaks_as(self.live.service("executor").target, learner, PROBE_BOUND)
        tensors = await checks.weights(learner)
        profile = load_profile(self.live.state / "profile.yaml")
        assert await checks.replayed(profile, self.record.keep_batches(), replay) == tensors
        return Ended(self.record, tensors)


@asynccontextmanager
async def chaos(
    starter: Path, folder: Path, steps: int, seed: int = 0, engine: Mapping[str, object] = MappingProxyType({})
) -> AsyncIterator[Chaos]:
    """A run of so many small steps on a deployment of its own."""
    config, task_ids = run_config(starter, steps, seed)
    async with live(starter, folder / "state", engine) as deployed:
        async with Client(deployed.service("orchestrator").target, deployed.identity(Role.CLIENT)) as client:
            await client.create_run(config, RUN_ID)
        record = Record(LocalStore(folder / "state" / "data"), RUN_ID, folder / "batches")
        keeper = asyncio.create_task(_keep_batches(record))
        try:
            yield Chaos(deployed, record, task_ids, seed)
        finally:
            keeper.cancel()
            with suppress(asyncio.CancelledError):
                await keeper


async def _keep_batches(record: Record) -> None:
    """Keeps each sealed batch before retention clears it: the run goes on while a killed service comes back."""
    while True:
        record.keep_batches()
        await asyncio.sleep(0.05)


def run_config(starter: Path, steps: int, seed: int) -> tuple[str, list[str]]:
    """A run's YAML, and the ids of its tasks."""
    config = yaml.safe_load((starter / "run.yaml").read_text())
    train = starter / "train.jsonl"
    dataset = load(train.name, train.read_bytes(), config["dataset"]["format"])
    config["dataset"] |= {"train": str(train.resolve())}
    return small(config, steps, seed), [task.task_id for task in dataset.tasks[:TASKS]]


def small(config: dict[str, Any], steps: int, seed: int, tasks_per_step: int = 3) -> str:
    """The YAML of a run of small steps over the first tasks of a config's data set."""
    config["dataset"] |= {"limit": TASKS}
    config |= {
        "seed": seed,
        "steps": steps,
        "stages": [{"train": "both", "steps": steps}],
        "rollout": {"tasks_per_step": tasks_per_step, "designs": 3, "executions": 2, "max_attempts": 8},
        "checkpoint": {"every": 3, "keep": 2},
        "probe_bound": PROBE_BOUND,
        # Steps so small and so many learn all that there is in sixty tasks or unlearn it, which pauses no run here. Weights
        # that a kill had spoilt still would, by `mismatch_kl_above`.
        "conditions": {
            "entropy_below": None,
            "reward_fall_above": None,
            "valid_scripts_below": None,
            "zero_variance_above": None,
        },
    }
    return yaml.safe_dump(config)


def random_kills(count: int, seed: int, longest: float) -> list[list[tuple[Victim, float]]]:
    """(what, seconds after the last recovery or kill) of each volley, so many kills together; the same for the same seed.
    Every third volley or so has a second kill, which hits the recovery from the first.
    """
    chance = random.Random(seed)
    volleys: list[list[tuple[Victim, float]]] = []
    while sum(map(len, volleys)) < count:
        seconds = [chance.uniform(0.0, longest)]
        if chance.random() < 1 / 3 and sum(map(len, volleys)) + 1 < count:
            seconds.append(chance.uniform(0.0, RECOVERY_SECONDS))
        volleys.append([(chance.choice(list(Victim)), each) for each in seconds])
    return volleys


async def run_schedule(
    starter: Path,
    folder: Path,
    schedule: Sequence[Kill],
    tell: Callable[[Outcome], None],
    seed: int = 0,
    steps: int = 0,
    engine: Mapping[str, object] = MappingProxyType({}),
) -> Ended:
    """Every kill of a schedule in one run, then to its end.

    Args:
        steps: of the run; a few more than kills unless given, since a point that a step goes by is tried at the next.
        engine: settings of the executor's engine beside the starter's.
    """
    async with chaos(starter, folder, steps or len(schedule) + _TRIES, seed, engine) as running:
        for victim, point in schedule:
            tell(await running.kill(victim, point))
        return await running.finish(folder / "replay")
