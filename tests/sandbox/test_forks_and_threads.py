"""Who forks: only zygotes, which are interpreters of their own with one thread; and what a fork of the caller's does."""

import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from queue import SimpleQueue

import pytest
from sandboxed import ONE_AGENT
from troupe.v1 import sandbox_pb2
from troupe_sandbox import Sandbox, _native, settings
from troupe_workflow import LIBRARY


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def command(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def is_zygote_or_its_fork(pid: int) -> bool:
    """A process keeps its command line across forks: one forked from the service would have the service's."""
    return any(part.endswith("inside.py") for part in command(pid))


def test_zygotes_are_executed_and_have_one_thread_while_the_service_has_many(server):
    assert threads(server.process.pid) > 2
    assert not is_zygote_or_its_fork(server.process.pid)
    zygotes = server.children()
    assert zygotes
    for zygote in zygotes:
        assert is_zygote_or_its_fork(zygote)
        assert threads(zygote) == 1


def test_every_program_is_a_fork_of_a_zygote_and_never_of_the_service(undisturbed):
    zygotes = undisturbed.children()
    requests = [SimpleQueue[sandbox_pb2.RunWorkflowRequest | None]() for _ in range(6)]
    streams = []
    for queue in requests:
        queue.put(undisturbed.start_message(ONE_AGENT))
        streams.append(undisturbed.stub.RunWorkflow(iter(queue.get, None), timeout=60))
    calls = [next(response.agent_call for response in stream if response.HasField("agent_call")) for stream in streams]
    programs = undisturbed.children() - zygotes
    assert len(programs) >= len(streams)
    for program in programs:
        assert is_zygote_or_its_fork(program), command(program)
    assert all(threads(zygote) == 1 for zygote in zygotes)
    for queue, call, stream in zip(requests, calls, streams, strict=True):
        reply = sandbox_pb2.AgentReply(call_id=call.call_id, text="42")
        queue.put(sandbox_pb2.RunWorkflowRequest(agent_reply=reply))
        assert [response for response in stream if response.HasField("outcome")]
        queue.put(None)


def test_a_zygote_that_has_threads_is_refused(tmp_path):
    library = shutil.copytree(LIBRARY, tmp_path / "library")
    with (library / "workflow/runtime.py").open("a") as runtime:
        runtime.write(
            "\nimport threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        )
    collected = settings.collect("auto", (), 1, 1, library=library)
    with pytest.raises(RuntimeError, match="2 threads run"):
        _native.Sandbox(collected)


def run_script(script: str) -> str:
    """A process of its own, ended as interpreters end, within a minute."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done
    return done.stdout


def test_a_forked_copy_refuses_and_leaves_its_parents_sandbox_alone():
    script = """
import gc, multiprocessing, os, sys
from troupe_sandbox import Sandbox

sandbox = Sandbox()

def use():
    try:
        sandbox.run_tool("1")
    except RuntimeError as error:
        print(error, flush=True)
    sandbox.close()

context = multiprocessing.get_context("fork")
child = context.Process(target=use)
child.start()
child.join(20)
print(child.exitcode, flush=True)
child = os.fork()
if child == 0:
    # Ends as interpreters do: everything is taken apart.
    del sandbox
    gc.collect()
    sys.exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(sandbox.run_tool("6 * 7").output, sandbox.run_workflow("print(1)", "?", lambda call: "").verdict)
"""
    refusal, *rest = run_script(script).splitlines()
    assert "belongs to process" in refusal
    assert "make a Sandbox after the fork" in refusal
    assert rest == ["0", "0", "42", " ok"]


def test_a_forked_process_makes_its_own():
    script = """
import multiprocessing
from troupe_sandbox import Sandbox

sandbox = Sandbox()

def use(pipe):
    with Sandbox() as own:
        pipe.send(own.run_tool("6 * 7").output)

context = multiprocessing.get_context("fork")
ours, theirs = context.Pipe()
child = context.Process(target=use, args=(theirs,))
child.start()
print(ours.poll(30) and ours.recv().strip())
child.join(20)
print(child.exitcode, sandbox.run_tool("1").verdict)
"""
    assert run_script(script) == "42\n0 ok\n"


def test_an_asyncio_copy_refuses_too():
    script = """
import asyncio, multiprocessing
from troupe_sandbox import AsyncSandbox

def use(sandbox):
    try:
        asyncio.run(sandbox.run_tool("1"))
    except RuntimeError as error:
        print("belongs to process" in str(error), flush=True)

async def main():
    async with AsyncSandbox() as sandbox:
        child = multiprocessing.get_context("fork").Process(target=use, args=(sandbox,))
        child.start()
        await asyncio.to_thread(child.join, 20)
        print(child.exitcode, (await sandbox.run_tool("1")).verdict)

asyncio.run(main())
"""
    assert run_script(script) == "True\n0 ok\n"


def test_ctrl_c_ends_a_wait_and_its_program():
    script = """
from troupe_sandbox import Limits, Sandbox

with Sandbox() as sandbox:
    print("ready", flush=True)
    try:
        sandbox.run_tool("while True: pass", Limits(cpu_seconds=60, wall_seconds=120))
    except KeyboardInterrupt:
        print(sandbox.run_tool("'goes on'").output, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert (process.returncode, said) == (0, "'goes on'\n\n")


def test_other_threads_go_on_while_one_waits(tmp_path):
    with Sandbox(work_root=tmp_path) as sandbox:
        waiting = threading.Thread(target=sandbox.run_tool, args=("import time; time.sleep(1)",))
        waiting.start()
        turns = 0
        while waiting.is_alive():
            turns += 1
            time.sleep(0.01)
        # With the GIL held there would be at most a turn at either end.
        assert turns > 10
