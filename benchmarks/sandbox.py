"""What the sandbox costs, beside what a user could pick instead.

    python benchmarks/sandbox.py [--rounds 5] [--profiles full,pod] [--core 0] [--only mixes,service,…] [--long]
        [--scripts 1000] [--solutions 1000] [--cases 100000]

Everything runs on one core, rivals and ours in interleaved rounds of the same run, so that figures of a shared machine
can be compared: read the ratios. The first round only warms up. Every output is compared byte for byte with that of
`subprocess.run`, every verdict must be OK. Rows with a goal say whether it is met. How far it has come goes to standard
error; on busy cores take smaller sizes (`--rounds 1 --scripts 100 --solutions 100 --cases 5000`), which the rows name.
"""

import argparse
import contextlib
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from sandbox_rivals import MIXES, RIVALS, Mix, installed, pin, run
from troupe.v1 import sandbox_pb2, sandbox_pb2_grpc
from troupe_sandbox import AgentCall, Limits, Sandbox

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
CASES_PER_SOLUTION = 50


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    rounds: int
    # Workflow scripts at once, solutions queued at once, cases in a row.
    scripts: int
    solutions: int
    cases: int


def progress(text: str) -> None:
    """Says how far it has come, apart from the table."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


@dataclass
class Row:
    """A figure per round of one configuration."""

    cases_per_second: list[float] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)

    def rate(self) -> float:
        return statistics.median(self.cases_per_second)

    def percentile(self, share: float) -> float:
        ordered = sorted(self.milliseconds)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


@dataclass(frozen=True)
class Goal:
    """A figure, what it should be, and whether more is better."""

    name: str
    figure: float
    target: float
    more_is_better: bool
    unit: str

    def line(self) -> str:
        met = self.figure >= self.target if self.more_is_better else self.figure <= self.target
        sign = "≥" if self.more_is_better else "≤"
        verdict = "met" if met else "NOT met"
        return f"{self.name:66} {self.figure:10.2f} {self.unit:8} goal {sign} {self.target:g}: {verdict}"


def measure_rival(command: list[str], mix: Mix, row: Row | None, expected: str | None) -> str:
    """A few cases of a rival, one by one; the output."""
    output = ""
    count = max(3, mix.cases // 10)
    started = time.perf_counter()
    for _ in range(count):
        before = time.perf_counter()
        output = run(command, mix)
        assert expected in (None, output), (command[0], output, expected)
        if row is not None:
            row.milliseconds.append((time.perf_counter() - before) * 1000)
    if row is not None:
        row.cases_per_second.append(count / (time.perf_counter() - started))
    return output


def measure_ours(sandbox: Sandbox, mix: Mix, expected: str, batch: bool, row: Row | None) -> None:
    """Whole solutions for the rate, solutions of one case for the latency."""
    count = min(CASES_PER_SOLUTION, mix.cases)
    # A batch is bounded by the limits of one case.
    limits = Limits(cpu_seconds=60, wall_seconds=120) if batch else None
    solutions = mix.cases // count * (5 if batch else 1)
    started = time.perf_counter()
    for _ in range(solutions):
        report = sandbox.run_tests(
            mix.program, [(mix.given, expected)] * count, checker="exact", batch=batch, limits=limits
        )
        assert report.passed, report
    elapsed = time.perf_counter() - started
    if row is not None:
        row.cases_per_second.append(solutions * count / elapsed)
    if batch:
        return
    for _ in range(count):
        before = time.perf_counter()
        report = sandbox.run_tests(mix.program, [(mix.given, expected)], checker="exact")
        assert report.passed, report
        if row is not None:
            row.milliseconds.append((time.perf_counter() - before) * 1000)


def mixes(profiles: list[str], sizes: Sizes) -> list[Goal]:
    """The table: mixes × rivals and ours."""
    rivals = installed()
    # Each as it would be set up for such programs: a zygote with numpy is larger, and every fork of it dearer.
    modules = {mix.module for mix in MIXES}
    sandboxes = {
        (profile, module): Sandbox(profile=profile, test_slots=1, preload=[module] if module else [])
        for profile in profiles
        for module in modules
    }
    goals = []
    for mix in MIXES:
        rows: dict[str, Row] = {name: Row() for name in rivals}
        ours = [(f"ours, {profile}, {mode}", profile, mode) for profile in profiles for mode in ("strict", "batch")]
        rows |= {name: Row() for name, _, _ in ours}
        for number in range(sizes.rounds + 1):
            progress(f"mixes: {mix.name}, round {number} of {sizes.rounds}")
            expected: str | None = None
            for name in rivals:
                row = rows[name] if number else None
                expected = measure_rival(RIVALS[name][1](mix), mix, row, expected)
            assert expected is not None
            for name, profile, mode in ours:
                sandbox = sandboxes[profile, mix.module]
                measure_ours(sandbox, mix, expected, mode == "batch", rows[name] if number else None)
        print(f"\n{mix.name:24}{'cases/s':>10}{'p50 ms':>10}{'p99 ms':>10}   × " + "   × ".join(rivals))
        for name, row in rows.items():
            latency = f"{row.percentile(0.5):10.2f}{row.percentile(0.99):10.2f}" if row.milliseconds else " " * 20
            ratios = "".join(f"{row.rate() / rows[rival].rate():10.1f}" for rival in rivals)
            print(f"{name:24}{row.rate():10.1f}{latency}{ratios}", flush=True)
        goals += goals_of(mix, rows, profiles)
    return goals


def goals_of(mix: Mix, rows: dict[str, Row], profiles: list[str]) -> list[Goal]:
    """What section 7 of the measurements asks of this mix."""
    goals = []
    for profile in profiles:
        strict, batch = rows[f"ours, {profile}, strict"], rows[f"ours, {profile}, batch"]
        against = strict.rate() / rows["subprocess.run"].rate()
        if mix.name in ("trivial", "typical"):
            goals.append(Goal(f"{mix.name}, {profile}, strict against subprocess.run", against, 9, True, "×"))
            if "bubblewrap" in rows:
                jailed = strict.rate() / rows["bubblewrap"].rate()
                goals.append(Goal(f"{mix.name}, {profile}, strict against bubblewrap", jailed, 12, True, "×"))
            least = {"trivial": (1000.0, 15_000.0), "typical": (550.0, 5000.0)}[mix.name]
            goals.append(Goal(f"{mix.name}, {profile}, strict", strict.rate(), least[0], True, "cases/s"))
            goals.append(Goal(f"{mix.name}, {profile}, batch", batch.rate(), least[1], True, "cases/s"))
        if mix.name == "typical":
            goals.append(Goal(f"latency, typical, {profile}, p50", strict.percentile(0.5), 1.5, False, "ms"))
            goals.append(Goal(f"latency, typical, {profile}, p99", strict.percentile(0.99), 4, False, "ms"))
        if mix.name == "numpy":
            goals.append(Goal(f"numpy, {profile}, strict against subprocess.run", against, 70, True, "×"))
    if set(profiles) >= {"full", "pod"} and mix.name in ("trivial", "typical"):
        share = rows["ours, full, strict"].rate() / rows["ours, pod, strict"].rate()
        goals.append(Goal(f"{mix.name}, with namespaces against without", share, 0.9, True, "×"))
    return goals


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


@contextlib.contextmanager
def service(profile: str) -> Iterator[str]:
    """The service as it is started anywhere, on this core; its address."""
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready.json"
        command = [sys.executable, "-m", "troupe_sandbox", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]
        command += ["--ready-file", str(ready), "--work-dir", folder, "--profile", profile, "--test-slots", "1"]
        process = subprocess.Popen([*command, "--die-with-parent", "--log", "warn"])
        try:
            while not ready.exists():
                assert process.poll() is None
                time.sleep(0.05)
            yield json.loads(ready.read_text())["target"]
        finally:
            process.terminate()
            process.wait()


def request(mix: Mix, expected: str, cases: int) -> sandbox_pb2.RunTestsRequest:
    """One solution as a caller sends it."""
    case = sandbox_pb2.StdinCase(stdin=mix.given, expected_stdout=expected)
    tests = sandbox_pb2.StdinTests(cases=[case] * cases, checker=sandbox_pb2.CHECKER_EXACT)
    return sandbox_pb2.RunTestsRequest(solution=mix.program, stdin_tests=tests)


def through_the_service(profiles: list[str], sizes: Sizes) -> list[Goal]:
    """Solutions of 50 cases, in process and through gRPC."""
    mix = next(mix for mix in MIXES if mix.name == "typical")
    expected = run(RIVALS["subprocess.run"][1](mix), mix)
    goals = []
    for profile in profiles:
        sandbox = Sandbox(profile=profile, test_slots=1)
        ratios = []
        with service(profile) as target, grpc.insecure_channel(target) as channel:
            stub = sandbox_pb2_grpc.SandboxStub(channel)
            asked = request(mix, expected, CASES_PER_SOLUTION)

            def through(stub: sandbox_pb2_grpc.SandboxStub = stub, asked: sandbox_pb2.RunTestsRequest = asked) -> None:
                assert list(stub.RunTests(asked))[-1].outcome.passed

            def in_process(sandbox: Sandbox = sandbox) -> None:
                assert sandbox.run_tests(mix.program, [(mix.given, expected)] * 50, checker="exact").passed

            for number in range(4 * sizes.rounds + 1):
                progress(f"service: {profile}, round {number} of {4 * sizes.rounds}")
                seconds = [timed(action) for action in (in_process, through)]
                if number:
                    ratios.append(seconds[0] / seconds[1])
        goals.append(Goal(f"through gRPC against in process, {profile}", statistics.median(ratios), 0.9, True, "×"))
    return goals


def timed(action: Callable[[], object]) -> float:
    """Seconds that an action takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def flat(profiles: list[str], sizes: Sizes) -> list[Goal]:
    """A thousand queued solutions against ten; a short job alone and beside a long one."""
    typical, heavy = (next(mix for mix in MIXES if mix.name == name) for name in ("typical", "CPU-heavy"))
    expected = {mix.name: run(RIVALS["subprocess.run"][1](mix), mix) for mix in (typical, heavy)}
    goals = []

    def many(sandbox: Sandbox, count: int) -> float:
        """Seconds per solution when as many are handed in at once."""
        cases = [(typical.given, expected["typical"])] * 4
        failed: list[object] = []

        def one() -> None:
            report = sandbox.run_tests(typical.program, cases, checker="exact")
            if not report.passed:
                failed.append(report)

        threads = [threading.Thread(target=one) for _ in range(count)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - started
        assert not failed, failed[0]
        return seconds / count

    for profile in profiles:
        sandbox = Sandbox(profile=profile, test_slots=1)
        many(sandbox, 10)
        progress(f"flat: {profile}, {sizes.rounds} times 10 solutions, {sizes.solutions} at once, and 10 again")
        few = [many(sandbox, 10) for _ in range(sizes.rounds)]
        queued = many(sandbox, sizes.solutions)
        few += [many(sandbox, 10) for _ in range(sizes.rounds)]
        against = queued / statistics.median(few)
        goals.append(Goal(f"a solution among {sizes.solutions} against among 10, {profile}", against, 1.2, False, "×"))
        progress(f"flat: {profile}, a short job beside a long one")

        def short(sandbox: Sandbox = sandbox) -> None:
            assert sandbox.run_tests(typical.program, [(typical.given, expected["typical"])], checker="exact").passed

        alone = statistics.median(timed(short) for _ in range(20))
        cases = [(heavy.given, expected["CPU-heavy"])] * 100
        long_job = threading.Thread(target=sandbox.run_tests, args=(heavy.program, cases))
        long_job.start()
        time.sleep(0.3)
        beside = [timed(short) for _ in range(20)]
        assert long_job.is_alive(), "the long job was too short"
        long_job.join()
        started = time.perf_counter()
        sandbox.run_tests(heavy.program, cases[:1])
        one_case = time.perf_counter() - started
        waited = (statistics.median(beside) - alone) / one_case
        goals.append(Goal(f"a short job waits for cases of a long one, one slot, {profile}", waited, 2, False, "cases"))
        del sandbox
    return goals


def after_many(profiles: list[str], sizes: Sizes) -> list[Goal]:
    """Memory and descriptors of the supervisor after many cases."""
    trivial = MIXES[0]
    expected = run(RIVALS["subprocess.run"][1](trivial), trivial)
    goals = []
    for profile in profiles:
        sandbox = Sandbox(profile=profile, test_slots=1)
        cases = [(trivial.given, expected)] * 1000

        def footprint() -> tuple[float, int]:
            return private_bytes(os.getpid()) / 2**20, len(list(Path("/proc/self/fd").iterdir()))

        sandbox.run_tests(trivial.program, cases)
        time.sleep(1)
        memory, descriptors = footprint()
        jobs = sizes.cases // len(cases)
        for number in range(jobs):
            if number % max(1, jobs // 10) == 0:
                progress(f"long: {profile}, {number * len(cases)} of {sizes.cases} cases")
            assert sandbox.run_tests(trivial.program, cases, checker="exact").passed
        time.sleep(1)
        memory_after, descriptors_after = footprint()
        goals += [
            Goal(f"memory after {sizes.cases} cases, {profile}", memory_after - memory, 4, False, "MiB more"),
            Goal(
                f"descriptors after {sizes.cases} cases, {profile}", descriptors_after - descriptors, 0, False, "more"
            ),
        ]
        del sandbox
    return goals


def spent(zygotes: set[int]) -> tuple[float, ...]:
    """So far: milliseconds of CPU time of programs, zygotes and this process; page faults and context switches."""
    programs, own = resource.getrusage(resource.RUSAGE_CHILDREN), resource.getrusage(resource.RUSAGE_SELF)
    return (
        (programs.ru_utime + programs.ru_stime) * 1000,
        sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in zygotes) / 1e6,
        (own.ru_utime + own.ru_stime) * 1000,
        programs.ru_minflt,
        own.ru_nvcsw + own.ru_nivcsw + programs.ru_nvcsw + programs.ru_nivcsw,
    )


def costs(profiles: list[str], sizes: Sizes) -> list[Goal]:
    """What one case is made of, alone and as one of many: CPU time, which a busy machine disturbs less than the clock."""
    columns = "".join(f"{name:>9}" for name in ("programs", "zygote", "own", "faults", "switches", "×"))
    print(f"\n{'CPU ms of each case, × subprocess.run':44}{columns}")
    for profile in profiles:
        for mix in MIXES:
            sandbox = Sandbox(profile=profile, test_slots=1, preload=[mix.module] if mix.module else [])
            zygotes = children(os.getpid())
            command = RIVALS["subprocess.run"][1](mix)
            tests = [(mix.given, run(command, mix))]
            before = spent(zygotes)
            progress(f"costs: {mix.name}, {profile}")
            for _ in range(5 * sizes.rounds):
                run(command, mix)
            rival = sum(after - at for at, after in zip(before[:3], spent(zygotes)[:3], strict=True)) / 5 / sizes.rounds
            for cases, jobs in ((1, 10 * sizes.rounds), (min(CASES_PER_SOLUTION, mix.cases), sizes.rounds)):
                assert sandbox.run_tests(mix.program, tests * cases).passed
                before = spent(zygotes)
                for _ in range(jobs):
                    assert sandbox.run_tests(mix.program, tests * cases).passed
                each = [(after - at) / cases / jobs for at, after in zip(before, spent(zygotes), strict=True)]
                label = f"{mix.name}, {profile}, " + ("alone" if cases == 1 else f"one of {cases}")
                figures = "".join(f"{figure:9.2f}" for figure in each[:3])
                print(f"{label:44}{figures}{each[3]:9.0f}{each[4]:9.1f}{rival / sum(each[:3]):9.1f}", flush=True)
            sandbox.close()
    return []


PARTS: dict[str, Callable[[list[str], Sizes], list[Goal]]] = {
    "mixes": mixes,
    "service": through_the_service,
    "flat": flat,
    "workflows": workflows,
    "long": after_many,
    "costs": costs,
}


ON_REQUEST = ("long", "costs")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profiles", default="full,pod")
    parser.add_argument("--core", type=int, default=min(os.sched_getaffinity(0)), help="everything runs on it")
    parser.add_argument(
        "--only", default="", help=f"some of {', '.join(PARTS)}; all but {' and '.join(ON_REQUEST)} by default"
    )
    parser.add_argument("--long", action="store_true", help="also the part that is long")
    parser.add_argument("--scripts", type=int, default=1000, help="of the part workflows, all at once")
    parser.add_argument("--solutions", type=int, default=1000, help="of the part flat, all at once")
    parser.add_argument("--cases", type=int, default=100_000, help="of the part long, in a row; thousands")
    arguments = parser.parse_args()
    pin(arguments.core)
    wanted = [name for name in arguments.only.split(",") if name] or [name for name in PARTS if name not in ON_REQUEST]
    wanted += ["long"] if arguments.long else []
    unknown = set(wanted) - PARTS.keys()
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}")
    profiles = arguments.profiles.split(",")
    sizes = Sizes(arguments.rounds, arguments.scripts, arguments.solutions, arguments.cases)
    for name in wanted:
        for goal in PARTS[name](profiles, sizes):
            print(goal.line(), flush=True)


if __name__ == "__main__":
    main()
