"""`AsyncSandbox`: the same answers without blocking the loop, and cancellation that frees the worker."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sandboxed import ONE_AGENT
from troupe_sandbox import AgentCall, AsyncSandbox, Limits, Sandbox

ENDLESS = "while True: pass"
PATIENT = Limits(cpu_seconds=60, wall_seconds=120)
VOTE = """
from workflow import AgentNode, EnsembleNode, Workflow
flow = Workflow("vote")
flow.add_node(EnsembleNode("vote", [AgentNode(f"a{i}", "Solve.") for i in range(4)], strategy="majority_vote"))
flow.run(question)
"""


@pytest.fixture
async def sandbox(tmp_path: Path) -> AsyncIterator[AsyncSandbox]:
    async with AsyncSandbox(test_slots=1, work_root=tmp_path) as started:
        yield started


async def test_it_says_what_the_sandbox_says(sandbox):
    report = await sandbox.run_tests("print(int(input()) ** 2)", [("3", "9"), ("4", "15")])
    assert [case.verdict for case in report.cases] == ["ok", "wrong_answer"]
    assert (await sandbox.run_tests("def f(x): return x", ["assert f(1) == 1"])).passed
    tool = await sandbox.run_tool("2 ** 10")
    assert tool.output == "1024\n"
    assert tool.profile == report.profile == sandbox.isolation().profile
    assert {layer.name for layer in sandbox.isolation().layers} >= {"landlock", "seccomp"}
    with pytest.raises(ValueError, match="no cases"):
        await sandbox.run_tests("x = 1", [])


async def test_the_loop_goes_on_while_a_program_runs(sandbox):
    run = asyncio.create_task(sandbox.run_tool("import time; time.sleep(0.5)"))
    turns = 0
    while not run.done():
        turns += 1
        await asyncio.sleep(0.01)
    assert (await run).verdict == "ok"
    assert turns > 5


async def test_cancelling_frees_the_worker(sandbox):
    # One slot: the second job can only run once the first program is gone.
    endless = asyncio.create_task(sandbox.run_tests(ENDLESS, [("", "")], limits=PATIENT))
    await asyncio.sleep(0.3)
    endless.cancel()
    with pytest.raises(asyncio.CancelledError):
        await endless
    report = await asyncio.wait_for(sandbox.run_tests("print(1)", [("", "1")]), timeout=30)
    assert report.passed


async def test_a_timeout_of_asyncio_ends_the_program(sandbox):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await sandbox.run_workflow(ENDLESS, "?", never, limits=PATIENT)
    assert (await sandbox.run_tool("1")).verdict == "ok"


async def never(call: AgentCall) -> str:
    raise AssertionError("no agent is asked")


async def test_agents_answer_on_the_loop_and_overlap(sandbox):
    together = asyncio.Barrier(4)

    async def answer(call: AgentCall) -> str:
        await together.wait()
        return r"\boxed{4}"

    report = await sandbox.run_workflow(VOTE, "2 + 2?", answer)
    assert (report.verdict, report.agent_calls) == ("ok", 4)
    assert "4" in (report.result or "")


async def test_an_agent_that_raises_refuses(sandbox):
    async def refuse(call: AgentCall) -> str:
        raise LookupError("nobody home")

    report = await sandbox.run_workflow(ONE_AGENT, "?", refuse)
    assert report.result_type == "error"
    assert "LookupError: nobody home" in (report.result or "")


async def test_agents_still_asked_when_the_script_ends_are_cancelled(sandbox):
    ended = asyncio.Event()

    async def slowly(call: AgentCall) -> str:
        try:
            await asyncio.sleep(600)
        finally:
            ended.set()
        return ""

    limits = Limits(wall_seconds=1)
    report = await sandbox.run_workflow(ONE_AGENT, "?", slowly, limits=limits)
    assert (report.verdict, report.outstanding_calls) == ("wall_limit", 1)
    await asyncio.wait_for(ended.wait(), timeout=10)


async def test_many_calls_at_once(sandbox):
    reports = await asyncio.gather(*(sandbox.run_tool(str(number)) for number in range(40)))
    assert [report.output for report in reports] == [f"{number}\n" for number in range(40)]


async def test_it_must_be_started_and_not_be_closed():
    sandbox = AsyncSandbox()
    with pytest.raises(RuntimeError, match="async with"):
        await sandbox.run_tool("1")
    async with sandbox:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        await sandbox.run_tool("1")


async def test_closing_ends_what_runs(tmp_path):
    async with AsyncSandbox(work_root=tmp_path) as sandbox:
        endless = asyncio.create_task(sandbox.run_tool(ENDLESS, PATIENT))
        await asyncio.sleep(0.3)
    endless.cancel()
    with pytest.raises(asyncio.CancelledError):
        await endless
    assert list(tmp_path.iterdir()) == []


def test_closing_ends_a_wait_of_another_thread(tmp_path):
    sandbox = Sandbox(work_root=tmp_path)
    said: list[str] = []

    def wait() -> None:
        try:
            sandbox.run_tool(ENDLESS, PATIENT)
        except RuntimeError as error:
            said.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.3)
    sandbox.close()
    thread.join(timeout=20)
    assert not thread.is_alive()
    assert said == ["this Sandbox was closed while a job ran"]
    sandbox.close()


async def test_a_callback_that_still_runs_does_not_hold_up_the_end(tmp_path):
    started = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slowly(call: AgentCall) -> str:
        loop.call_soon_threadsafe(started.set)
        time.sleep(1)
        return ""

    with Sandbox(work_root=tmp_path) as sandbox:
        limits = Limits(wall_seconds=0.5)
        report = await asyncio.to_thread(sandbox.run_workflow, ONE_AGENT, "?", slowly, limits=limits)
        assert report.verdict == "wall_limit"
        await started.wait()
