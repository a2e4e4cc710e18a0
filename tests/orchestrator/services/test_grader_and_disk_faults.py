"""Graders that are killed, and a disk that is full, in the middle of a run: none makes an answer wrong, each is named."""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from orchestrated.faults import ONE_STEP, TASKS, Once, metrics, rollout
from orchestrated.learner import NO_ROOM
from orchestrated.models import right_unless_guessed
from orchestrated.world import Backends, math_task, refused
from troupe.v1 import evaluation_pb2, training_pb2
from troupe_orchestrator.training import endurance

pytestmark = pytest.mark.asyncio(loop_scope="session")


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


@pytest.mark.parametrize(
    "call",
    ["SubmitBatch", "SaveCheckpoint"]
    + [pytest.param(call, marks=pytest.mark.long) for call in ("TrainStep", "ExportWeights", "Score")],
)
async def test_a_full_disk_of_the_learner_pauses_the_run_by_name_and_with_room_it_goes_on(
    open_world, stand_ins: Backends, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endurance, "_FIRST_PAUSE_SECONDS", 0.01)
    stand_ins.policy.reply = right_unless_guessed
    stand_ins.learner.full_for = call
    async with open_world(learner=True) as opened:
        events = await opened.run(opened.config(TASKS[:2], **ONE_STEP))
        run = await opened.get_run()
        assert (run.state, run.reason.split(":")[0]) == (training_pb2.RUN_STATE_PAUSED, "DiskFull")
        for said in (NO_ROOM, "free space there", "then resume the run"):
            assert said in run.reason
        assert {event.condition.reason for event in events if event.HasField("condition")} == {"DiskFull"}
        stand_ins.learner.full_for = ""
        await opened.training.ResumeRun(training_pb2.ResumeRunRequest(run_id="run"))
        await opened.run_events()
        assert (await opened.get_run()).state == training_pb2.RUN_STATE_SUCCEEDED
        assert [applied.step for applied in stand_ins.learner.applied] == [1]


async def test_an_eval_job_whose_data_set_does_not_fit_is_refused_by_folder_and_remedy_and_can_be_created_with_room(
    open_world, stand_ins: Backends, small_eval_disk: Path
) -> None:
    filler = small_eval_disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    rows = [math_task(f"easy-{number}") for number in range(3)]
    async with open_world() as opened:
        with refused(
            "RESOURCE_EXHAUSTED", f"{small_eval_disk}/late/dataset cannot be written", "free space on its file"
        ):
            await opened.evaluate(*rows, job_id="late")
        assert not list(small_eval_disk.glob("late/*"))
        filler.unlink()
        assert (await opened.evaluate(*rows, job_id="late")).state == evaluation_pb2.EVAL_STATE_SUCCEEDED
        assert [path.name for path in (small_eval_disk / "late").glob("*dataset*")] == ["dataset"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB under the folders of runs; the store is elsewhere."""
    yield from _mounted(tmp_path / "data" / "runs")


@pytest.fixture
def small_eval_disk(tmp_path: Path) -> Iterator[Path]:
    """The same under the folders of eval jobs."""
    yield from _mounted(tmp_path / "data" / "evals")


def _mounted(folder: Path) -> Iterator[Path]:
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
