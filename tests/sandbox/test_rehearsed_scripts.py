"""The zygote of scripts has run one before it forks: nothing of that shows, and modules are still told of forks."""

import json
from collections.abc import Iterator

import pytest
from troupe_sandbox import AgentCall, Sandbox

# Everything that a process counts or keeps and that the rehearsal has used.
LOOK = """
import gc, json, os, sys, threading
from workflow import AgentNode, Workflow

threads = [thread.name for thread in threading.enumerate()]
names = sys.argv + [__name__, __file__]
before = len([each for each in gc.get_objects() if isinstance(each, Workflow)])
flow = Workflow("own")
flow.add_node(AgentNode("solver", "You solve."))
message = flow.run(question)
started = threading.Thread(target=int)
print(json.dumps({
    "threads": threads, "names": names, "workflows": before, "thread": started.name,
    "inherited": [name for name in os.environ if name.startswith("MALLOC")],
}), flush=True)
"""

# The numbers of parent and child differ since `random` seeds in the child; a lock that was held is free in it.
FORK = """
import os, random, threading, logging
logging._lock.acquire()
end, start = os.pipe()
child = os.fork()
if child == 0:
    held = logging._lock.acquire(blocking=False) and threading.main_thread() is threading.current_thread()
    os.write(start, f"{held} {random.random()}".encode())
    os._exit(0)
os.waitpid(child, 0)
logging._lock.release()
held, number = os.read(end, 100).split()
print(held.decode(), float(number) != random.random())
"""


@pytest.fixture(scope="module", params=["full", "pod"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with Sandbox(profile=request.param, workflow_slots=1) as running:
        yield running


def test_a_script_cannot_tell_that_one_was_rehearsed(sandbox):
    calls: list[AgentCall] = []

    def answer(call: AgentCall) -> str:
        calls.append(call)
        return r"\boxed{1}"

    report = sandbox.run_workflow(LOOK, "?", answer)
    assert report.verdict == "ok", report
    assert [call.conversation_id for call in calls] == ["solver#1"]
    assert json.loads(report.stdout) == {
        "threads": ["MainThread"],
        "names": ["<design>", "__main__", "<design>"],
        "workflows": 0,
        "thread": "Thread-1 (int)",
        "inherited": [],
    }


def test_a_script_that_forks_has_the_handlers_of_preloaded_modules(sandbox):
    report = sandbox.run_workflow(FORK, "?", lambda call: "")
    assert (report.verdict, report.stdout) == ("ok", "True True\n"), report
