"""The worker pool: algebra by the library, in processes that are killed when they overrun. Real workers take part."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from troupe_orchestrator.datasets.task import MathReference
from troupe_orchestrator.grading import workers
from troupe_orchestrator.grading.grades import Correct, GraderFault, Incorrect
from troupe_orchestrator.grading.workers import MathGrader

EXPRESSIONS = [
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", True),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{3}}", False),
    ("x^2-1", "(x-1)(x+1)", True),
    ("x^2", "y^2", False),
    (r"\frac{1}{3}", "0.333333+0", False),
    ("10^{40}", "10^{40}+1", False),
    ("5", r"\sqrt{25.0000001}", False),
    ("5", r"\frac{10}{2}", True),
    ("0.785", r"\frac{\pi}{4}", False),
    (r"(-\infty,1)\cup(2,\infty)", r"(2,\infty)\cup(-\infty,1)", True),
    (r"(\sqrt{2}, 1)", r"(\frac{2}{\sqrt{2}}, 1)", True),
    ("f(x)=2x", "f(x)=x+x", True),
    ("x=5", "y=5", False),
    (r"\frac{7}{2}", r"3\frac{1}{2}", True),
    ("4", "9^{9^{9^{9}}}", False),
    ("4", r"10^{10^{10}} - 1", False),
    ("5", r"10000000! + 0", False),
    ("12", r"\int_0^1 e^{x^{x^x}} dx", False),
    ("x+1", "((x+1)^{1000}+1)^{1000}", False),
    ("4", r"__import__('os').system('true')", False),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def grader() -> AsyncIterator[MathGrader]:
    # Generous: these tests run beside others on two cores.
    async with MathGrader(seconds=20) as running:
        yield running


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("reference", "answer", "equal"), EXPRESSIONS)
async def test_expressions_are_compared_by_algebra_without_tolerance(
    grader: MathGrader, reference: str, answer: str, equal: bool
) -> None:
    grade = await grader.grade(MathReference(reference), answer)
    assert isinstance(grade, Correct if equal else Incorrect), grade


@pytest.mark.asyncio(loop_scope="module")
async def test_a_decimal_reference_brings_its_tolerance_to_the_worker(grader: MathGrader) -> None:
    assert await grader.grade(MathReference("0.785", tolerance=0.0005), r"\frac{\pi}{4}") == Correct()


@pytest.mark.asyncio(loop_scope="module")
async def test_a_worker_that_is_killed_is_replaced_and_the_answer_graded_again(grader: MathGrader) -> None:
    assert await grader.grade(MathReference("x+1"), "1+x") == Correct()
    process = grader._workers[0]._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    await process.wait()
    assert await grader.grade(MathReference("x+1"), "1+x+0") == Correct()
    assert grader._workers[0]._process is not process


@pytest.mark.asyncio(loop_scope="module")
async def test_a_cancelled_comparison_leaves_no_answer_for_the_next_one(grader: MathGrader) -> None:
    cancelled = asyncio.create_task(grader.grade(MathReference("x+1"), "1+x"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert isinstance(await grader.grade(MathReference("x+1"), "x+2"), Incorrect)


async def test_an_overrun_is_a_fault_after_one_fresh_try_and_leaves_no_process() -> None:
    async with MathGrader(seconds=0.0001) as hasty:
        grade = await hasty.grade(MathReference("x+1"), "1+x")
        assert isinstance(grade, GraderFault)
        assert grade.reason.count("no answer within") == 2
        assert hasty._workers[0]._process is None


BOMB = MathReference("(x^2-1)^{900}+x"), "(x-1)^{900}(x+1)^{900}+x"
"""Equal, and found out by multiplying out."""


@pytest.fixture
def only_cpu_time_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few processors a worker gets."""
    monkeypatch.setattr(workers, "_WALL_FACTOR", 100)


@pytest.mark.usefixtures("only_cpu_time_counts")
async def test_an_answer_on_which_every_worker_spins_is_ungradable_and_the_next_is_graded() -> None:
    async with MathGrader(seconds=1) as grader:
        grade = await grader.grade(*BOMB)
        assert grade == Incorrect("ungradable: it used up its CPU seconds; it used up its CPU seconds", True)
        assert await grader.grade(MathReference("x+1"), "1+x") == Correct()


@pytest.mark.long
async def test_an_answer_that_eats_the_memory_of_every_worker_is_ungradable() -> None:
    async with MathGrader(seconds=60, memory_bytes=340 << 20) as grader:
        assert await grader.grade(MathReference("x+1"), "1+x") == Correct()
        grade = await grader.grade(MathReference("(x^2-1)^{60000}+x"), "(x-1)^{60000}(x+1)^{60000}+x")
        assert grade == Incorrect("ungradable: it used up its memory; it used up its memory", True)


@pytest.mark.usefixtures("only_cpu_time_counts")
async def test_a_reference_on_which_every_worker_spins_is_a_fault_that_names_it() -> None:
    reference = MathReference(r"\log(e^{" * 15 + "x" + "})" * 15)
    async with MathGrader(seconds=1) as grader:
        grade = await grader.grade(reference, "x+y")
        assert isinstance(grade, GraderFault)
        assert "nothing can be graded against the reference" in grade.reason


async def test_workers_that_somebody_kills_are_a_fault_whatever_the_answer() -> None:
    async def kill(grader: MathGrader) -> None:
        while True:
            process = grader._workers[0]._process
            if process is not None and process.returncode is None:
                process.kill()
            await asyncio.sleep(0.02)

    async with MathGrader() as grader:
        killing = asyncio.create_task(kill(grader))
        grade = await grader.grade(*BOMB)
        killing.cancel()
        assert isinstance(grade, GraderFault)
        assert "exit status -9" in grade.reason


async def test_a_worker_that_cannot_start_is_a_fault() -> None:
    async with MathGrader(memory_bytes=32 << 20) as starved:
        grade = await starved.grade(MathReference("x+1"), "1+x")
        assert isinstance(grade, GraderFault)
        assert "ended with exit status" in grade.reason


async def test_plain_answers_start_no_worker() -> None:
    async with MathGrader() as grader:
        assert await grader.grade(MathReference("5"), "5") == Correct()
        assert isinstance(await grader.grade(MathReference("5"), "no idea at all"), Incorrect)
        assert grader._workers[0]._process is None


def test_a_worker_dies_with_its_parent() -> None:
    script = (
        "import asyncio\n"
        "from troupe_orchestrator.datasets.task import MathReference\n"
        "from troupe_orchestrator.grading.workers import MathGrader\n"
        "async def main():\n"
        "    grader = MathGrader()\n"
        "    await grader.grade(MathReference('x+1'), '1+x')\n"
        "    print(grader._workers[0]._process.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert Path(f"/proc/{worker}").exists()
        parent.kill()
    stat = Path(f"/proc/{worker}/stat")
    for _ in range(100):
        if not stat.exists() or ") Z " in stat.read_text():
            return
        signal.sigtimedwait([], 0.05)
    raise AssertionError(f"worker {worker} outlived its parent")


def test_a_grader_without_workers_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one worker"):
        workers.MathGrader(workers=0)
