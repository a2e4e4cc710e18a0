"""What the sandbox costs: starting an execution, a tool call, a test case against `subprocess.run`.

    python benchmarks/sandbox.py [--rounds 5] [--profiles full,pod]

Each round measures every configuration once, interleaved, and the median over rounds is printed, because figures drift
on a shared machine: compare the ratios. Programs and outputs are equal on both sides, and compared.
"""

import argparse
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from troupe_sandbox import AgentCall, Sandbox
from troupe_sandbox.settings import base_interpreter

TRIVIAL = "import sys\nprint(sum(map(int, sys.stdin)))\n"
TYPICAL = """
import sys, heapq, bisect, collections, itertools, functools, re, json, math
n = int(sys.stdin.readline())
graph = collections.defaultdict(list)
for a in range(n):
    for step in (1, 7, 13):
        graph[a].append(((a + step) % n, step * step % 11 + 1))
distance = [math.inf] * n
distance[0] = 0
queue = [(0, 0)]
while queue:
    d, a = heapq.heappop(queue)
    if d > distance[a]:
        continue
    for b, w in graph[a]:
        if d + w < distance[b]:
            distance[b] = d + w
            heapq.heappush(queue, (d + w, b))
print(sum(distance))
"""
CASES = {"trivial": (TRIVIAL, "1\n2\n3\n"), "typical": (TYPICAL, "100\n")}
ONE_CALL = """
from workflow import AgentNode, Workflow
flow = Workflow("one")
flow.add_node(AgentNode("solver", "You solve."))
flow.run(question)
"""
TESTS_PER_ROUND = 60
IDLE_EXECUTIONS = 16


@dataclass(frozen=True)
class Figure:
    """One measured quantity of one configuration."""

    name: str
    unit: str
    value: float


def subprocess_rate(program: str, given: str) -> tuple[float, str]:
    """Cases per second of `subprocess.run` on a real interpreter, without site packages, and the output."""
    command = [str(base_interpreter()), "-I", "-S", "-c", program]
    started = time.perf_counter()
    for _ in range(TESTS_PER_ROUND // 3):
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=True)
    return TESTS_PER_ROUND // 3 / (time.perf_counter() - started), done.stdout


def sandbox_rate(sandbox: Sandbox, program: str, given: str, expected: str) -> float:
    """Cases per second, one at a time; every case must pass."""
    started = time.perf_counter()
    report = sandbox.run_tests(program, [(given, expected)] * TESTS_PER_ROUND, checker="exact")
    elapsed = time.perf_counter() - started
    assert report.passed, report
    return TESTS_PER_ROUND / elapsed


def median_milliseconds(action: Callable[[], object], repeats: int) -> float:
    """Median wall time of an action."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


def private_bytes(pid: int) -> int:
    """Memory that only this process has, with its page tables."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    private = sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_"))
    status = Path(f"/proc/{pid}/status").read_text()
    tables = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmPTE:"))
    return (private + tables) * 1024


def children(pid: int) -> set[int]:
    """Direct children of all threads of a process."""
    lists = (path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    return {int(child) for text in lists for child in text.split()}


def idle_memory(sandbox: Sandbox, own_pid: int) -> float:
    """MiB that each execution has to itself, keeper included, while its agent is asked."""
    zygotes = children(own_pid)
    everyone_waits, go_on = threading.Semaphore(0), threading.Event()

    def answer(call: AgentCall) -> str:
        everyone_waits.release()
        go_on.wait()
        return r"\boxed{1}"

    threads = [
        threading.Thread(target=sandbox.run_workflow, args=(ONE_CALL, "?", answer)) for _ in range(IDLE_EXECUTIONS)
    ]
    for thread in threads:
        thread.start()
    for _ in threads:
        everyone_waits.acquire()
    keepers = children(own_pid) - zygotes
    scripts = {script for keeper in keepers for script in children(keeper)}
    total = sum(private_bytes(pid) for pid in keepers | scripts)
    go_on.set()
    for thread in threads:
        thread.join()
    assert len(keepers) == len(scripts) == IDLE_EXECUTIONS
    return total / IDLE_EXECUTIONS / 2**20


def measure(sandbox: Sandbox, expected: dict[str, str]) -> list[Figure]:
    """All figures of one configuration, once."""
    figures = []
    for name, (program, given) in CASES.items():
        rate = sandbox_rate(sandbox, program, given, expected[name])
        figures.append(Figure(f"stdin case, {name}", "1/s", rate))
    figures.append(Figure("tool call", "ms", median_milliseconds(lambda: sandbox.run_tool("print(6 * 7)"), 40)))
    reports = [sandbox.run_workflow("pass", "?", lambda call: "") for _ in range(20)]
    figures.append(Figure("execution, CPU", "ms", statistics.median(r.use.cpu_seconds for r in reports) * 1000))
    figures.append(
        Figure(
            "execution, wall", "ms", median_milliseconds(lambda: sandbox.run_workflow("pass", "?", lambda c: ""), 20)
        )
    )
    return figures


def main() -> None:
    """Measures and prints one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profiles", default="full,pod")
    arguments = parser.parse_args()
    profiles = arguments.profiles.split(",")
    # One case at a time on both sides.
    sandboxes = {profile: Sandbox(profile=profile, test_slots=1) for profile in profiles}
    table: dict[str, dict[str, list[float]]] = {}
    units: dict[str, str] = {}

    def note(figure: Figure, configuration: str) -> None:
        table.setdefault(figure.name, {}).setdefault(configuration, []).append(figure.value)
        units[figure.name] = figure.unit

    for number in range(arguments.rounds + 1):
        expected = {}
        for name, (program, given) in CASES.items():
            rate, expected[name] = subprocess_rate(program, given)
            # The first round only warms up.
            if number > 0:
                note(Figure(f"stdin case, {name}", "1/s", rate), "subprocess")
        for profile, sandbox in sandboxes.items():
            figures = measure(sandbox, expected)
            if number > 0:
                for figure in figures:
                    note(figure, profile)
    print(f"{'':28}" + "".join(f"{name:>12}" for name in ["subprocess", *profiles]) + "   against subprocess.run")
    for name, row in table.items():
        medians = {configuration: statistics.median(values) for configuration, values in row.items()}
        cells = "".join(f"{medians.get(column, float('nan')):12.2f}" for column in ["subprocess", *profiles])
        ratios = ""
        if "subprocess" in medians:
            ratios = "  " + ", ".join(f"{medians[p] / medians['subprocess']:.1f} x ({p})" for p in profiles)
        print(f"{name + ', ' + units[name]:28}{cells} {ratios}")
    for profile in profiles:
        # A process of its own, so that no other sandbox's children are counted.
        del sandboxes[profile]
    for profile in profiles:
        sandbox = Sandbox(profile=profile, workflow_slots=IDLE_EXECUTIONS)
        memory = idle_memory(sandbox, own_pid=int(Path("/proc/self").resolve().name))
        print(f"private memory of an idle execution, {profile}: {memory:.2f} MiB")
        del sandbox


if __name__ == "__main__":
    main()
