"""Mixes of programs × rivals and ours: cases per second and latency."""

import statistics
import time
from dataclasses import dataclass, field

from troupe_sandbox import Limits, Sandbox

from sandbox_parts.measuring import CASES_PER_SOLUTION, Goal, Sizes, progress
from sandbox_parts.rivals import MIXES, RIVALS, Mix, installed, run


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


# Runs a second and core of `subprocess.run` on the machine on which the absolute goals were set.
REFERENCE = {"trivial": 116.0, "typical": 66.0}


def goals_of(mix: Mix, rows: dict[str, Row], profiles: list[str]) -> list[Goal]:
    """What section 7 of the measurements asks of this mix."""
    goals = []
    baseline = rows["subprocess.run"].rate()
    slower = f"subprocess.run does {baseline:.0f} a second here, {REFERENCE.get(mix.name, 0):g} where the goal was set"
    for profile in profiles:
        strict, batch = rows[f"ours, {profile}, strict"], rows[f"ours, {profile}, batch"]
        against = strict.rate() / baseline
        if mix.name in ("trivial", "typical"):
            goals.append(Goal(f"{mix.name}, {profile}, strict against subprocess.run", against, 9, True, "×"))
            if "bubblewrap" in rows:
                jailed = strict.rate() / rows["bubblewrap"].rate()
                goals.append(Goal(f"{mix.name}, {profile}, strict against bubblewrap", jailed, 12, True, "×"))
            least = {"trivial": (1000.0, 15_000.0), "typical": (550.0, 5000.0)}[mix.name]
            goals.append(Goal(f"{mix.name}, {profile}, strict", strict.rate(), least[0], True, "cases/s", slower))
            goals.append(Goal(f"{mix.name}, {profile}, batch", batch.rate(), least[1], True, "cases/s", slower))
        if mix.name == "typical":
            goals.append(Goal(f"latency, typical, {profile}, p50", strict.percentile(0.5), 1.5, False, "ms", slower))
            goals.append(Goal(f"latency, typical, {profile}, p99", strict.percentile(0.99), 4, False, "ms", slower))
            goals.append(Goal(f"stretch: typical, {profile}, strict", strict.rate(), 750, True, "cases/s", slower))
            goals.append(Goal(f"stretch: typical, {profile}, against subprocess.run", against, 12, True, "×"))
        if mix.name == "numpy":
            goals.append(Goal(f"numpy, {profile}, strict against subprocess.run", against, 70, True, "×"))
    if set(profiles) >= {"full", "pod"} and mix.name in ("trivial", "typical"):
        share = rows["ours, full, strict"].rate() / rows["ours, pod, strict"].rate()
        goals.append(Goal(f"{mix.name}, with namespaces against without", share, 0.9, True, "×"))
    return goals
