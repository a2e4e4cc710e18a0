"""Faults of ours in the middle of a run: none is paid for, none leaves a trace in a tree, each is named with its remedy."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from orchestrated.models import RIGHT, WRONG, question_of, right_unless_guessed
from orchestrated.world import Backends, World, backends, math_task, world
from troupe.v1 import common_pb2, policy_pb2, sandbox_pb2, sandbox_pb2_grpc, solver_pb2, training_pb2
from troupe_contracts.calls import Context
from troupe_contracts.channel import connect
from troupe_contracts.errors import Exhausted, FailedPrecondition, Internal, InvalidArgument, ServiceError, Unavailable
from troupe_contracts.server import start
from troupe_contracts.settings import ServiceSettings
from troupe_orchestrator.store.trees import read_trees
from troupe_orchestrator.tree import ConversationPayload, NodeKind, Tree

pytestmark = pytest.mark.asyncio(loop_scope="session")

TASKS = [math_task(f"task-{number}") for number in range(4)]
ONE_STEP: dict[str, object] = {"steps": 1, "stages": [{"train": "both", "steps": 1}]}


class Once:
    """A reply that fails the first time that a question with the word is asked about, and is right unless guessed after."""

    def __init__(self, word: str, failure: ServiceError | Callable[[], Awaitable[object]]) -> None:
        self._word = word
        self._failure = failure
        self.failed = 0

    async def __call__(self, request: policy_pb2.GenerateRequest) -> str:
        if not self.failed and self._word in question_of(request):
            self.failed += 1
            if isinstance(self._failure, ServiceError):
                raise self._failure
            await self._failure()
        return right_unless_guessed(request)


def faults(events: list[training_pb2.RunEvent]) -> list[training_pb2.Condition]:
    return [event.condition for event in events if event.condition.reason == "InfrastructureFault"]


def metrics(events: list[training_pb2.RunEvent], step: int = 1) -> dict[str, float]:
    return next(dict(e.step_committed.metrics) for e in events if e.HasField("step_committed") and e.step == step)


def trees(world: World, step: int = 1) -> list[Tree]:
    (file,) = (world.folder / "data" / "runs" / "run" / "steps" / f"{step:06d}").glob("trees*.parquet")
    return read_trees(file)


def check_only_what_was_said(world: World, tasks: int, step: int = 1) -> None:
    """Every tree is whole, and every turn in it was given by the stand-in as it gives them without faults."""
    found = trees(world, step)
    assert len(found) == tasks
    for tree in found:
        counts = Counter(node.kind for node in tree.nodes)
        assert (counts[NodeKind.DESIGN], counts[NodeKind.EXECUTION]) == (2, 2)
        for execution in tree.of_kind(NodeKind.EXECUTION):
            (conversation,) = tree.children(execution.id, NodeKind.CONVERSATION)
            assert isinstance(conversation.payload, ConversationPayload)
            assert conversation.payload.messages[-1].content in (RIGHT, WRONG)
            assert conversation.payload.stop_reasons == ("end_of_turn",)


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("restarting"),
        Internal("a defect"),
        Exhausted("no room", 0.01),
        FailedPrecondition("replica", "loads"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_an_engine_that_fails_once_costs_nobody_anything(
    open_world, stand_ins: Backends, error: ServiceError
) -> None:
    stand_ins.policy.reply = Once("task-1", error)
    async with open_world(learner=True) as world:
        events = await world.run(world.config(TASKS, **ONE_STEP, rollout=rollout(4)))
        run = await world.get_run()
        assert run.state == training_pb2.RUN_STATE_SUCCEEDED, run.reason
        assert metrics(events)["success"] == 0.5
        assert metrics(events)["tasks_dropped"] == 0
        check_only_what_was_said(world, 4)
    told = faults(events)
    if isinstance(error, Exhausted):
        # It had no room for a moment: that is no fault.
        assert (told, metrics(events)["faults"]) == ([], 0)
        return
    assert [condition.message.split(":")[0] for condition in told] == ["executor"]
    assert error.message in told[0].message
    assert told[0].remedy
    assert (metrics(events)["faults"], metrics(events)["faults/executor"]) == (1, 1)
    assert any(event.condition == told[0] for event in run.recent_events)


def rollout(tasks: int) -> dict[str, object]:
    return {"tasks_per_step": tasks, "designs": 2, "executions": 1, "max_attempts": 2}


async def test_what_an_engine_refuses_for_good_drops_its_task_and_the_drop_is_seen_by_length(
    open_world, stand_ins: Backends
) -> None:
    long = math_task("long", question="What is 6 * 7? " + "Think. " * 40)

    def reply(request: policy_pb2.GenerateRequest) -> str:
        if "Think." in question_of(request):
            raise InvalidArgument("messages", "is too odd")
        return right_unless_guessed(request)

    stand_ins.policy.reply = reply
    async with open_world(learner=True) as world:
        events = await world.run(world.config([*TASKS, long], **ONE_STEP, rollout=rollout(5)))
        check_only_what_was_said(world, 4)
        seen = metrics(events)
        assert (seen["tasks_dropped"], seen["drop_rate/prompt_lt_128"], seen["drop_rate/prompt_lt_512"]) == (1, 0, 1)
        assert "too odd" in faults(events)[0].message
        assert not any(b"Think." in bytes(s.token_ids) for b in stand_ins.learner.batches.values() for s in b)


async def test_an_engine_that_hangs_is_a_fault_at_the_deadline_of_a_turn(open_world, stand_ins: Backends) -> None:
    stand_ins.policy.reply = hanging = Once("task-1", lambda: asyncio.sleep(30))
    async with open_world(learner=True, turn_seconds=0.5) as world:
        events = await world.run(world.config(TASKS, **ONE_STEP, rollout=rollout(4)))
        assert hanging.failed == 1
        check_only_what_was_said(world, 4)
        (told,) = faults(events)
        assert "executor: DEADLINE_EXCEEDED" in told.message
        assert "hangs" in told.remedy


async def test_an_engine_that_is_restarted_in_a_step_is_brought_to_the_steps_weights_before_it_is_used(
    open_world, stand_ins: Backends
) -> None:
    weights = stand_ins.policy.weights

    async def restart() -> None:
        # As after a kill: the call is lost, and what comes back has the weights of its folder.
        weights.version = common_pb2.PolicyVersion(lineage="start", number=0)
        raise Unavailable("connection reset")

    async with open_world(learner=True) as world:

        def reply(request: policy_pb2.GenerateRequest) -> str | Awaitable[str]:
            if weights.version.number == 1 and weights.committed == [1]:
                return restart()  # type: ignore[return-value]
            return right_unless_guessed(request)

        stand_ins.policy.reply = reply
        events = await world.run(world.config(TASKS))
        run = await world.get_run()
        assert run.state == training_pb2.RUN_STATE_SUCCEEDED, run.reason
        assert weights.committed == [1, 1, 2]
        check_only_what_was_said(world, 2, step=2)
        versions = {
            version
            for tree in trees(world, 2)
            for node in tree.of_kind(NodeKind.CONVERSATION)
            if node.tokens is not None
            for version in node.tokens.run_versions
            if version
        }
        assert versions == {"start:1"}
        assert any("connection reset" in condition.message for condition in faults(events))


async def test_an_engine_that_is_restarted_after_the_orchestrator_was_is_brought_to_the_steps_weights(
    open_world, stand_ins: Backends
) -> None:
    weights, waiting = stand_ins.policy.weights, asyncio.Event()

    async def waits(request: policy_pb2.GenerateRequest) -> str:
        if weights.version.number == 0:
            return right_unless_guessed(request)
        waiting.set()
        return await asyncio.Event().wait()  # type: ignore[return-value]

    async def restart() -> str:
        weights.version = common_pb2.PolicyVersion(lineage="start", number=0)
        raise Unavailable("connection reset")

    stand_ins.policy.reply = waits
    async with open_world(learner=True) as world:
        request = training_pb2.CreateRunRequest(run_id="run", config=world.config(TASKS))
        await world.training.CreateRun(request)
        await asyncio.wait_for(waiting.wait(), 30)
    stand_ins.policy.reply = lambda request: (
        restart() if weights.version.number == 1 and weights.committed == [1] else right_unless_guessed(request)
    )
    async with open_world(learner=True, outage_seconds=1.0) as world:
        await world.run_events()
        run = await world.get_run()
        assert run.state == training_pb2.RUN_STATE_SUCCEEDED, run.reason
        assert weights.committed == [1, 1, 2]


async def test_an_engine_that_comes_back_as_another_model_stays_out_and_the_run_pauses_by_name(
    open_world, stand_ins: Backends
) -> None:
    def replaced(request: policy_pb2.GenerateRequest) -> str:
        stand_ins.policy.weights.tokenizer_digest = "x" * 64
        raise Unavailable("gone")

    stand_ins.policy.reply = replaced
    async with open_world(learner=True, outage_seconds=0.3) as world:
        await world.run(world.config(TASKS, **ONE_STEP))
        run = await world.get_run()
        assert run.state == training_pb2.RUN_STATE_PAUSED
        assert "tokenizer_digest" in run.reason
        assert "start it from the same model" in run.reason
        assert stand_ins.learner.applied == []


async def test_solving_while_new_weights_are_loaded_waits_for_them(open_world, stand_ins: Backends) -> None:
    stand_ins.policy.reply = loading = Once("", FailedPrecondition("replica", "new weights are being loaded"))
    async with open_world() as world:
        request = solver_pb2.SolveRequest(question="What is 6 * 7?", task_type=common_pb2.TASK_TYPE_MATH)
        *_, last = [event async for event in world.solver.Solve(request, timeout=30)]
        assert (last.answer.status, last.answer.answer, loading.failed) == ("ok", "42", 1)


async def test_a_designer_with_an_engine_of_its_own_that_nobody_trains_is_refused_by_name(
    tmp_path: Path, sandbox: str, stand_ins: Backends
) -> None:
    async with backends() as own:
        with pytest.raises(Exception, match="TROUPE_DESIGNER_LEARNER"):
            async with world(tmp_path, stand_ins, sandbox, learner=True, designer=own.target):
                pass
        async with world(tmp_path, stand_ins, sandbox, designer=own.target) as evaluating:
            job = await evaluating.evaluate(math_task("evaluated"))
            assert job.summary.success == 1.0
            assert len(own.designer.requests) == 1


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
    async with connect(sandbox) as channel:
        crowded = CrowdedSandbox(sandbox_pb2_grpc.SandboxStub(channel), refusals=5)

        def register(server: grpc.aio.Server) -> None:
            sandbox_pb2_grpc.add_SandboxServicer_to_server(crowded, server)

        running = await start(ServiceSettings(), register, ["troupe.v1.Sandbox"])
        async with world(tmp_path, stand_ins, running.target, learner=True) as ours:
            events = await ours.run(ours.config(TASKS, **ONE_STEP, rollout=rollout(4)))
            check_only_what_was_said(ours, 4)
            assert crowded.refusals == 0
            assert (faults(events), metrics(events)["faults"]) == ([], 0)
            assert {node.attempt for tree in trees(ours) for node in tree.nodes} == {0}
        await running.drain(0)


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
            raise Exhausted("all workflow slots are taken", 0.05)
        async for response in self._real.RunWorkflow(requests):
            yield response

    async def GetIsolation(
        self, request: sandbox_pb2.GetIsolationRequest, context: Context
    ) -> sandbox_pb2.IsolationReport:
        report: sandbox_pb2.IsolationReport = await self._real.GetIsolation(request)
        return report


async def test_a_grader_that_is_killed_again_and_again_is_a_fault_and_never_a_wrong_answer(
    open_world, stand_ins: Backends
) -> None:
    stand_ins.policy.reply = lambda request: r"<delivery>\boxed{x+1+0}</delivery>"
    async with open_world(learner=True) as world, killing_graders():
        await world.run(world.config([math_task("algebra", answer="1+x")], **ONE_STEP, rollout=rollout(1)))
        run = await world.get_run()
        assert run.state == training_pb2.RUN_STATE_PAUSED
        assert "grader: the grading worker failed" in run.reason
        assert stand_ins.learner.applied == []


@pytest.mark.long
async def test_an_answer_that_no_grader_can_grade_is_wrong_and_its_task_goes_on(
    open_world, stand_ins: Backends
) -> None:
    bomb = r"<delivery>\boxed{(x-1)^{900}(x+1)^{900}+x}</delivery>"
    stand_ins.policy.reply = lambda request: bomb
    async with open_world() as world:
        job = await world.evaluate(math_task("bomb", answer="(x^2-1)^{900}+x"))
        (item,) = await world.items(job.job_id)
        assert (item.status, item.success) == ("ok", False)
        assert item.reason.startswith("ungradable: it used up its CPU seconds")


async def test_a_full_disk_pauses_the_run_by_name_and_what_was_finished_is_kept(
    open_world, stand_ins: Backends, small_disk: Path
) -> None:
    filler = small_disk / "filler"

    async def fill() -> None:
        await asyncio.sleep(0.5)
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(b"x" * 4096)

    stand_ins.policy.reply = Once("task-1", fill)
    async with open_world(learner=True) as opened:
        await opened.run(opened.config(TASKS[:2], **ONE_STEP))
        run = await opened.get_run()
        assert run.state == training_pb2.RUN_STATE_PAUSED
        assert "No space left on device" in run.reason
        assert "resume" in run.reason
        asked = len(stand_ins.designer.requests)
        filler.unlink()
        await opened.training.ResumeRun(training_pb2.ResumeRunRequest(run_id="run"))
        events = await opened.run_events()
        assert (await opened.get_run()).state == training_pb2.RUN_STATE_SUCCEEDED
        assert metrics(events)["executions"] == 4
        assert [request.task_id for request in stand_ins.designer.requests[asked:]] == ["task-1"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB under the folders of runs; the store is elsewhere."""
    folder = tmp_path / "data" / "runs"
    folder.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "none", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.asynccontextmanager
async def killing_graders() -> AsyncIterator[None]:
    """While the block runs every grading worker of this process is killed as soon as it is seen."""

    async def kill() -> None:
        while True:
            for pid in _children(os.getpid()):
                with contextlib.suppress(OSError):
                    if b"troupe_orchestrator.grading.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.02)

    killing = asyncio.create_task(kill())
    yield
    killing.cancel()


def _children(pid: int) -> list[int]:
    return [
        int(each) for task in Path(f"/proc/{pid}/task").iterdir() for each in (task / "children").read_text().split()
    ]


class SandboxProcess:
    """A real sandbox of a test's own, on a port that it keeps over restarts."""

    def __init__(self, folder: Path, *options: str) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._options = options or ("--workflow-slots", "4")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.target = f"127.0.0.1:{probe.getsockname()[1]}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "SandboxProcess":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        ready = self._folder / "ready.json"
        ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "troupe_sandbox", "--listen", self.target, "--ready-file", str(ready)]
        command += ["--work-dir", str(self._folder), "--log", "warn", "--die-with-parent", *self._options]
        self._process = subprocess.Popen(command)
        give_up = time.monotonic() + 60
        while not ready.exists():
            assert self._process.poll() is None, "the sandbox did not start"
            assert time.monotonic() < give_up, "the sandbox does not serve"
            time.sleep(0.02)
        assert json.loads(ready.read_text())["target"] == self.target

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)
            self._process = None
