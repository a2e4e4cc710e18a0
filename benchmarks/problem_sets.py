"""The time for all solutions of HumanEval and MBPP against their tests, beside `subprocess.run`.

    python benchmarks/problem_sets.py [--profiles full,pod] [--every 1]

Both sides run on one and the same core, a process for each assertion case, and every case must pass on both. The two take
turns, problem by problem, so that a change of the machine's speed hits both. `subprocess.run` gets a real interpreter's
path with `-I -S` and setup, solution and case as its program. The slowest problem of MBPP takes seconds by itself, so the
ratio of the whole set is below that of its median problem: both are printed.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/sandbox/harness"))
from problem_sets import FILES, Problem, problems
from troupe_sandbox import Limits, Sandbox
from troupe_sandbox.settings import base_interpreter

LIMITS = Limits(cpu_seconds=60, wall_seconds=240)


def in_sandbox(sandbox: Sandbox, problem: Problem) -> None:
    """All cases of a problem, in the sandbox."""
    report = sandbox.run_tests(
        problem.solution, problem.cases, setup=problem.setup, entry_point=problem.entry_point, limits=LIMITS
    )
    assert report.passed, (problem.problem_id, report)


def in_subprocesses(problem: Problem) -> None:
    """All cases of a problem, each in an interpreter of its own."""
    for case in problem.cases:
        program = "\n".join((problem.setup, problem.solution, case))
        command = [str(base_interpreter()), "-I", "-S", "-c", program]
        subprocess.run(command, capture_output=True, check=True, env={})


def seconds(action: Callable[[], None]) -> float:
    """Wall time of an action."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def main() -> None:
    """Measures and prints one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--profiles", default="full,pod")
    parser.add_argument("--every", type=int, default=1, help="take one problem in so many")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    sandboxes = {name: Sandbox(profile=name, test_slots=1) for name in arguments.profiles.split(",")}
    print(f"{'':32}{'subprocess.run':>16}" + "".join(f"{name:>12}{'ratio':>8}{'median':>8}" for name in sandboxes))
    for name in FILES:
        found = problems(name)[:: arguments.every]
        for sandbox in sandboxes.values():
            in_sandbox(sandbox, found[0])
        rival: list[float] = []
        ours: dict[str, list[float]] = {profile: [] for profile in sandboxes}
        for problem in found:
            rival.append(seconds(partial(in_subprocesses, problem)))
            for profile, sandbox in sandboxes.items():
                ours[profile].append(seconds(partial(in_sandbox, sandbox, problem)))
        cells = ""
        for times in ours.values():
            ratio = statistics.median(a / b for a, b in zip(rival, times, strict=True))
            cells += f"{sum(times):10.2f} s{sum(rival) / sum(times):7.1f}x{ratio:7.1f}x"
        cases = sum(len(problem.cases) for problem in found)
        print(f"{f'{name}, {len(found)} problems, {cases} cases':32}{sum(rival):14.2f} s{cells}")


if __name__ == "__main__":
    main()
