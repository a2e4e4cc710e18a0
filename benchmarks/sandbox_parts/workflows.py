"""Workflow scripts: many at once, and what a call of an agent costs."""

import itertools
import os
import statistics
import threading
import time

from troupe_sandbox import AgentCall, Sandbox

from sandbox_parts.measuring import Goal, Sizes, progress
from sandbox_parts.processes import children, private_bytes

ONE_CALL = """
from workflow import AgentNode, Workflow
flow = Workflow("one")
flow.add_node(AgentNode("solver", "You solve."))
flow.run(question)
"""
MANY_CALLS = """
from workflow import AgentNode, Workflow
flow = Workflow("many")
flow.add_node(AgentNode("solver", "You solve."))
for _ in range(200):
    flow.run(question)
"""


def workflows(profiles: list[str], sizes: Sizes) -> list[Goal]:
    """Scripts that all wait for an agent at once; then one that asks many times."""
    goals = []
    for profile in profiles:
        sandbox = Sandbox(profile=profile, workflow_slots=sizes.scripts, test_slots=1)
        zygotes = children(os.getpid())
        everyone_waits, go_on = threading.Semaphore(0), threading.Event()

        def answer(call: AgentCall, waits: threading.Semaphore = everyone_waits, on: threading.Event = go_on) -> str:
            waits.release()
            on.wait()
            return r"\boxed{1}"

        threads = [
            threading.Thread(target=sandbox.run_workflow, args=(ONE_CALL, "?", answer)) for _ in range(sizes.scripts)
        ]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for number in range(sizes.scripts):
            if number % 100 == 0:
                progress(f"workflows: {profile}, {number} of {sizes.scripts} scripts wait for their agent")
            everyone_waits.acquire()
        start = (time.perf_counter() - started) / sizes.scripts * 1000
        keepers = children(os.getpid()) - zygotes
        scripts = {script for keeper in keepers for script in children(keeper)}
        memory = sum(private_bytes(pid) for pid in keepers | scripts) / 2**30
        progress(f"workflows: {profile}, all wait; they go on")
        go_on.set()
        for thread in threads:
            thread.join()
        assert len(scripts) == sizes.scripts, len(scripts)
        times: list[float] = []

        def count(call: AgentCall, at: list[float] = times) -> str:
            at.append(time.perf_counter())
            return r"\boxed{1}"

        for number in range(sizes.rounds):
            progress(f"workflows: {profile}, calls, round {number + 1} of {sizes.rounds}")
            assert sandbox.run_workflow(MANY_CALLS, "?", count).verdict == "ok"
        trips = [after - before for before, after in itertools.pairwise(times)]
        # The goal is for a thousand.
        most = 2.5 * sizes.scripts / 1000
        goals += [
            Goal(f"{sizes.scripts} workflow scripts at once, {profile}, memory", memory, most, False, "GiB"),
            Goal(f"{sizes.scripts} workflow scripts at once, {profile}, start of each", start, 2, False, "ms"),
            Goal(f"agent call and reply, {profile}, all of it", statistics.median(trips) * 1e6, 100, False, "µs"),
        ]
        del sandbox
    return goals
