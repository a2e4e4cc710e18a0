"""The moments of a step at which something is killed, each reached for certain and held until the kill is done.

A moment is reached by stopping (SIGSTOP) the process that would lead beyond it, and read off what is really there: the
store's step, the learner's state, the replica's update. The caller kills, then lets the rest go on. Where a moment was
missed (a step sealed nothing, a load was over too soon) `at` says so, and the caller takes the next step.

    mid-rollout      a task group is journalled, others are under way; the orchestrator is stopped
    after seal       the batch is sealed, the learner (stopped) has not seen it
    during TrainStep the learner says TRAINING, its rank is stopped
    after its ack    the learner has applied the batch, the orchestrator (stopped) has not recorded it
    mid-sync         the replica has an update begun or staged, orchestrator and learner are stopped
    after sync       the store says that the engines have the weights, the orchestrator is stopped
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from enum import Enum

from troupe.v1 import learner_pb2, policy_pb2, policy_pb2_grpc
from troupe_contracts.channel import connect
from troupe_contracts.identity import own

from killing.deployment import POLL_SECONDS, Live, Victim, go_on, stop
from killing.record import Record, Step

STEP_SECONDS = 240.0
_LOADING = (policy_pb2.UPDATE_STATE_BEGUN, policy_pb2.UPDATE_STATE_STAGED)


class Point(Enum):
    """When in a step."""

    MID_ROLLOUT = "mid-rollout"
    AFTER_SEAL = "after seal"
    DURING_TRAIN_STEP = "during TrainStep"
    AFTER_ITS_ACK = "after its ack"
    MID_SYNC = "mid-sync"
    AFTER_SYNC = "after sync"


class MissedError(Exception):
    """The step went by the moment."""


class Moment:
    """What is stopped now. Let go at the end, whatever happens."""

    def __init__(self, live: Live, record: Record) -> None:
        self._live = live
        self._record = record
        self.stopped: list[int] = []

    async def at(self, point: Point) -> Step:
        """Waits for the moment in the next step that comes to it; the step as it is then.

        Raises:
            MissedError: the step went by.
        """
        begun = self._record.committed()
        step = await self._until(lambda: self._rolling(begun))
        if point is Point.MID_ROLLOUT:
            self._stop(Victim.ORCHESTRATOR)
            return self._expect(step, "rolling")
        if point is Point.AFTER_SEAL:
            self._stop(Victim.LEARNER_FRONT)
            self._expect(step, "rolling")
            return await self._until(lambda: self._in(step, "sealed"))
        if point is Point.AFTER_SYNC:
            synced = await self._until(lambda: self._in(step, "synced", "committed"))
            self._stop(Victim.ORCHESTRATOR)
            return self._expect(synced, "synced", "committed")
        self._stop(Victim.LEARNER_RANK)
        self._expect(step, "rolling")
        await self._training(step)
        if point is Point.DURING_TRAIN_STEP:
            return self._expect(step, "sealed")
        if point is Point.AFTER_ITS_ACK:
            self._stop(Victim.ORCHESTRATOR)
            self._go_on(Victim.LEARNER_RANK)
            await self._applied(step)
            return self._expect(step, "sealed")
        self._go_on(Victim.LEARNER_RANK)
        await self._loading(step)
        return self._expect(step, "trained")

    def let_go(self) -> None:
        """Everything goes on that was stopped and is still there."""
        go_on(self.stopped)
        self.stopped.clear()

    def _rolling(self, after: int) -> Step | None:
        step = self._record.newest()
        return step if step.number > after and step.state == "rolling" and step.groups else None

    def _in(self, step: Step, *states: str) -> Step | None:
        now = self._record.newest()
        if now.number > step.number or (now.state == "committed" and "committed" not in states):
            raise MissedError(f"step {step.number} is past {' and '.join(states)}")
        return now if now.state in states else None

    def _expect(self, step: Step, *states: str) -> Step:
        now = self._record.newest()
        if now.number != step.number or now.state not in states:
            raise MissedError(f"step {now.number} is {now.state}, wanted step {step.number} {' or '.join(states)}")
        return now

    async def _training(self, step: Step) -> None:
        while (await self._live.learner()).state != learner_pb2.GANG_STATE_TRAINING:
            self._in(step, "rolling", "sealed")
            await asyncio.sleep(POLL_SECONDS)

    async def _applied(self, step: Step) -> None:
        updates = self._record.updates_of(step.number)
        if not updates:
            raise MissedError(f"step {step.number} sealed no batch")
        while True:
            learner = await self._live.learner()
            if learner.state == learner_pb2.GANG_STATE_READY and learner.applied_step >= max(updates):
                return
            await asyncio.sleep(POLL_SECONDS)

    async def _loading(self, step: Step) -> None:
        async with connect(self._live.service("executor").target, own()) as channel:
            stub = policy_pb2_grpc.PolicyStub(channel)
            while (await stub.GetPolicy(policy_pb2.GetPolicyRequest())).state not in _LOADING:
                self._in(step, "sealed", "trained")
            self._stop(Victim.ORCHESTRATOR)
            self._stop(Victim.LEARNER_FRONT)
            if (await stub.GetPolicy(policy_pb2.GetPolicyRequest())).state not in _LOADING:
                raise MissedError("the load was over too soon")

    def _stop(self, victim: Victim) -> None:
        pid = self._live.pid(victim)
        stop([pid])
        self.stopped.append(pid)

    def _go_on(self, victim: Victim) -> None:
        pid = self._live.pid(victim)
        go_on([pid])
        self.stopped.remove(pid)

    async def _until(self, look: Callable[[], Step | None]) -> Step:
        deadline = time.monotonic() + STEP_SECONDS
        while (found := look()) is None:
            state, reason = self._record.run_state()
            assert state == "running", f"the run is {state}: {reason}"
            assert time.monotonic() < deadline, f"it did not come to it within {STEP_SECONDS:g} s"
            await asyncio.sleep(POLL_SECONDS)
        return found
