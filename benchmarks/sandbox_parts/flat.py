"""What must not grow: a solution among many, a short job beside a long one, what many cases leave."""

import os
import statistics
import threading
import time
from pathlib import Path

from troupe_sandbox import Sandbox

from sandbox_parts.measuring import Goal, Sizes, progress, timed
from sandbox_parts.processes import private_bytes
from sandbox_parts.rivals import MIXES, RIVALS, run


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
