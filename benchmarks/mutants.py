"""Changed solutions of HumanEval and MBPP in the sandbox, beside what Python itself says of them.

    python benchmarks/mutants.py [--profile full] [--share 1.0] [--survivors FILE]

Prints, by kind of change: how many mutants there are, how many the tests catch, how many survive, and where sandbox and
interpreter disagree. `accepted wrongly` (Python's own run fails, the sandbox says ok) is a hole and must be 0; `refused
wrongly` is the opposite. A mutant that survives in both is equivalent or shows weak tests: `--survivors` writes them as
JSON lines, to be looked at. Problems whose own solution takes more than half a second are left out. A share below 1 is
drawn with a fixed seed.
"""

import argparse
import json
import random
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/sandbox/harness"))
from problem_sets import FILES, Problem, problems
from problem_sets.mutants import Mutant, mutants
from problem_sets.plain import CPU_SECONDS, FAILS, PASSES, PlainInterpreter
from troupe_sandbox import Limits, Sandbox
from troupe_sandbox.settings import base_interpreter

SEED = 20
AT_ONCE = 2
COLUMNS = ("mutants", "caught", "survived", "too slow", "accepted wrongly", "refused wrongly")


def outcome(sandbox: Sandbox, plain: PlainInterpreter, problem: Problem, mutant: Mutant) -> str:
    """The column that a mutant counts in."""
    says = plain.ask(problem.setup, mutant.source, problem.cases, problem.entry_point)
    report = sandbox.run_tests(
        mutant.source,
        problem.cases,
        setup=problem.setup,
        entry_point=problem.entry_point,
        limits=Limits(cpu_seconds=CPU_SECONDS),
        stop_at_first_failure=True,
    )
    if report.passed:
        return "accepted wrongly" if says == FAILS else "survived"
    if any(case.verdict == "cpu_limit" for case in report.cases):
        return "too slow"
    return "refused wrongly" if says == PASSES else "caught"


def drawn(plain: PlainInterpreter, share: float) -> Iterator[tuple[str, Problem, Mutant]]:
    """The mutants to run."""
    chance = random.Random(SEED)
    for name in FILES:
        for problem in problems(name):
            if plain.ask(problem.setup, problem.solution, problem.cases, problem.entry_point) != PASSES:
                print(f"left out: {problem.problem_id}")
                continue
            yield from ((name, problem, mutant) for mutant in mutants(problem.solution) if chance.random() < share)


def main() -> None:
    """Runs all and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--profile", default="auto", choices=("auto", "full", "pod"))
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--survivors", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.simplefilter("ignore", SyntaxWarning)
    # Made before any thread: it forks.
    interpreters: SimpleQueue[PlainInterpreter] = SimpleQueue()
    for _ in range(AT_ONCE):
        interpreters.put(PlainInterpreter(str(base_interpreter())))
    with PlainInterpreter(str(base_interpreter())) as plain:
        work = list(drawn(plain, arguments.share))
    sandbox = Sandbox(profile=arguments.profile, test_slots=AT_ONCE)
    counts: Counter[tuple[str, str]] = Counter()
    lines: list[str] = []
    lock = threading.Lock()

    def run(name: str, problem: Problem, mutant: Mutant) -> None:
        plain = interpreters.get()
        column = outcome(sandbox, plain, problem, mutant)
        interpreters.put(plain)
        with lock:
            counts.update((row, each) for row in (mutant.kind, name, "all") for each in ("mutants", column))
            if "wrongly" in column:
                print(f"{column}: {problem.problem_id} line {mutant.line} ({mutant.kind})")
            if column == "survived":
                fields = {"problem": problem.problem_id, "kind": mutant.kind, "line": mutant.line}
                lines.append(json.dumps({**fields, "source": mutant.source}))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for future in [pool.submit(run, *each) for each in work]:
            future.result()
    print(f"{'':16}" + "".join(f"{column:>18}" for column in COLUMNS))
    rows = sorted({row for row, _ in counts} - {*FILES, "all"})
    for row in (*rows, *FILES, "all"):
        print(f"{row:16}" + "".join(f"{counts[row, column]:18}" for column in COLUMNS))
    if arguments.survivors:
        arguments.survivors.write_text("".join(f"{line}\n" for line in sorted(lines)), encoding="utf-8")


if __name__ == "__main__":
    main()
