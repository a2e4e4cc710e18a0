"""What one case is made of: CPU time of programs, zygotes and the supervisor."""

import os
import resource
from pathlib import Path

from troupe_sandbox import Sandbox

from sandbox_parts.measuring import CASES_PER_SOLUTION, Goal, Sizes, progress
from sandbox_parts.processes import children
from sandbox_parts.rivals import MIXES, RIVALS, run


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
