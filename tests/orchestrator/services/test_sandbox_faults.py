"""Sandboxes that are killed or crowded in the middle of a run: no fault is paid for, each is named with its remedy."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from orchestrated.faults import ONE_STEP, TASKS, Once, check_only_what_was_said, faults, metrics, rollout, trees
from orchestrated.models import question_of, right_unless_guessed
from orchestrated.sandbox_process import SandboxProcess
from orchestrated.world import Backends, world
from troupe.v1 import policy_pb2, sandbox_pb2, sandbox_pb2_grpc, training_pb2
from troupe_contracts.calls import Context
from troupe_contracts.channel import connect
from troupe_contracts.errors import Exhausted
from troupe_contracts.server import start
from troupe_contracts.settings import ServiceSettings
from troupe_orchestrator.rollout import faults as rollout_faults

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_two_sandboxes_share_the_work_and_when_one_is_killed_the_other_goes_on(
    tmp_path: Path, stand_ins: Backends, sandbox: str
) -> None:
    with SandboxProcess(tmp_path / "second") as second:
        used: set[str] = set()

        async def reply(request: policy_pb2.GenerateRequest) -> str:
            used.add(request.conversation_id)
            if "task-3" in question_of(request) and second.running():
                second.kill()
            await asyncio.sleep(0.05)
            return right_unless_guessed(request)

        stand_ins.policy.reply = reply
        async with world(tmp_path, stand_ins, f"{sandbox},{second.target}", learner=True) as opened:
            events = await opened.run(opened.config(TASKS, **ONE_STEP, rollout=rollout(4)))
            check_only_what_was_said(opened, 4)
            run = await opened.get_run()
            assert run.state == training_pb2.RUN_STATE_SUCCEEDED, run.reason
            assert [condition.message.split(":")[:2] for condition in faults(events)] == [["sandbox", " UNAVAILABLE"]]


async def test_a_sandbox_that_is_killed_in_mid_execution_is_waited_for_and_used_when_it_is_back(
    tmp_path: Path, stand_ins: Backends
) -> None:
    with SandboxProcess(tmp_path / "sandbox") as only:
        killed = asyncio.Event()

        async def kill() -> None:
            only.kill()
            killed.set()

        stand_ins.policy.reply = Once("task-1", kill)
        async with world(tmp_path, stand_ins, only.target, learner=True) as opened:
            running = asyncio.create_task(opened.run(opened.config(TASKS, **ONE_STEP, rollout=rollout(4))))
            await asyncio.wait_for(killed.wait(), 30)
            await asyncio.sleep(0.3)
            await asyncio.to_thread(only.start)
            events = await running
            run = await opened.get_run()
            assert run.state == training_pb2.RUN_STATE_SUCCEEDED, run.reason
            check_only_what_was_said(opened, 4)
            assert metrics(events)["tasks_dropped"] == 0
            assert metrics(events)["faults/sandbox"] >= 1
            assert {condition.message.split(":")[0] for condition in faults(events)} == {"sandbox"}


async def test_a_pool_that_is_full_is_waited_for_and_is_no_fault(
    tmp_path: Path, stand_ins: Backends, sandbox: str
) -> None:
    stand_ins.policy.reply = right_unless_guessed
    async with (
        crowding(sandbox, refusals=5) as (crowded, target),
        world(tmp_path, stand_ins, target, learner=True) as ours,
    ):
        events = await ours.run(ours.config(TASKS, **ONE_STEP, rollout=rollout(4)))
        check_only_what_was_said(ours, 4)
        assert crowded.refusals == 0
        assert (faults(events), metrics(events)["faults"]) == ([], 0)
        assert {node.attempt for tree in trees(ours) for node in tree.nodes} == {0}


async def test_a_pool_that_stays_full_is_told_of_once_with_the_remedy_and_is_no_fault(
    tmp_path: Path, stand_ins: Backends, sandbox: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout_faults, "NOTICE_SECONDS", 0.1)
    stand_ins.policy.reply = CrowdedEngine(refusals=4)
    async with crowding(sandbox, refusals=4) as (_, target), world(tmp_path, stand_ins, target, learner=True) as ours:
        events = await ours.run(ours.config(TASKS, **ONE_STEP, rollout=rollout(4)))
        check_only_what_was_said(ours, 4)
        assert (faults(events), metrics(events)["faults"]) == ([], 0)
        told = {event.condition.reason: event.condition for event in events if event.HasField("condition")}
        assert sorted(event.condition.reason for event in events if event.HasField("condition")) == [
            "ExecutorFull",
            "SandboxFull",
        ]
        assert "all workflow slots are taken" in told["SandboxFull"].message
        assert "the queue is full" in told["ExecutorFull"].message
        for condition in told.values():
            assert "waited for" in condition.message
            assert condition.remedy == "it has no room: give it more, or lower what runs at once"


class CrowdedEngine:
    """A reply that refuses the first turns for want of room."""

    def __init__(self, refusals: int) -> None:
        self._refusals = refusals

    def __call__(self, request: policy_pb2.GenerateRequest) -> str:
        if self._refusals:
            self._refusals -= 1
            raise Exhausted("the queue is full", 0.05)
        return right_unless_guessed(request)


class CrowdedSandbox(sandbox_pb2_grpc.SandboxServicer):
    """A stand-in that has no room for the first executions, and hands the others to the real sandbox."""

    def __init__(self, real: Any, refusals: int) -> None:
        self._real = real
        self.refusals = refusals

    async def RunWorkflow(
        self, requests: AsyncIterator[sandbox_pb2.RunWorkflowRequest], context: Context
    ) -> AsyncIterator[sandbox_pb2.RunWorkflowResponse]:
        if self.refusals:
            self.refusals -= 1
            # As the sandbox does: a caller that still writes as a call ends is told of a broken stream, not why it ended.
            await anext(requests)
            raise Exhausted("all workflow slots are taken", 0.05)
        async for response in self._real.RunWorkflow(requests):
            yield response

    async def GetIsolation(
        self, request: sandbox_pb2.GetIsolationRequest, context: Context
    ) -> sandbox_pb2.IsolationReport:
        report: sandbox_pb2.IsolationReport = await self._real.GetIsolation(request)
        return report


@contextlib.asynccontextmanager
async def crowding(sandbox: str, refusals: int) -> AsyncIterator[tuple[CrowdedSandbox, str]]:
    """A sandbox without room at first, and where it serves."""
    async with connect(sandbox) as channel:
        crowded = CrowdedSandbox(sandbox_pb2_grpc.SandboxStub(channel), refusals)

        def register(server: grpc.aio.Server) -> None:
            sandbox_pb2_grpc.add_SandboxServicer_to_server(crowded, server)

        running = await start(ServiceSettings(), register, ["troupe.v1.Sandbox"])
        try:
            yield crowded, running.target
        finally:
            await running.drain(0)
