"""Kills processes of a run at random moments, and says what became of it.

    .venv/bin/python benchmarks/chaos.py --starter .troupe/starter-0 --kills 100 --out /tmp/chaos

One run on a real deployment under its supervisor. After each recovery a process is drawn and killed with SIGKILL after a
random time that is at most `--longest` seconds, whatever the run is doing then; after a third of these a second one is
killed at a random moment of the recovery. The seed makes the draw the same again. A row says what was killed, which step
was in which state at the last kill, and how long it took from there until a step was committed again with every service
up. After each recovery, what the learner has applied is compared with what is sealed, and the tasks that were trained with
the epoch's order; at the end the run is paused, and its weights are compared, tensor by tensor, with those of a fresh
learner that is fed the sealed batches. With `--compare` the same run goes undisturbed for as many steps, and the last lines
say how many of the sealed batches are the same.

Exit status 0 only if every check held.
"""

import argparse
import asyncio
import shutil
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "chaos" / "harness"))

from killing.checks import fingerprint
from killing.run import Ended, Outcome, chaos, random_kills

ENDLESS = 10_000


async def killed(options: argparse.Namespace) -> tuple[Ended, list[Outcome]]:
    """The run that is killed at."""
    kills = random_kills(options.kills, options.seed, options.longest)
    outcomes: list[Outcome] = []
    async with chaos(options.starter, options.out / "killed", steps=ENDLESS) as running:
        deadline = time.monotonic() + options.seconds
        number = 0
        for volley in kills:
            outcome = await running.kill_at_any_time(volley)
            outcomes.append(outcome)
            number += len(volley)
            print(
                f"{number:4d}  {outcome.what:31s} step {outcome.step:4d} {outcome.state:10s} {outcome.seconds:6.1f} s",
                flush=True,
            )
            if time.monotonic() > deadline:
                print(f"stopped after {number} of {options.kills} kills: --seconds {options.seconds:g} are over")
                break
        return await running.pause(options.out / "replay"), outcomes


async def undisturbed_run(options: argparse.Namespace, steps: int) -> Ended:
    """The same run without a kill."""
    async with chaos(options.starter, options.out / "undisturbed", steps=ENDLESS) as running:
        await running.committed(steps)
        return await running.pause(options.out / "undisturbed-replay")


def summary(outcomes: list[Outcome]) -> None:
    """Seconds to the next committed step, by what was killed."""
    by_victim: dict[str, list[float]] = defaultdict(list)
    for outcome in outcomes:
        by_victim[outcome.what].append(outcome.seconds)
    print(f"\n{'killed':31s}  times  median s  longest s")
    for what, seconds in sorted(by_victim.items()):
        print(f"{what:31s}  {len(seconds):5d}  {statistics.median(seconds):8.1f}  {max(seconds):9.1f}")


async def main(options: argparse.Namespace) -> None:
    shutil.rmtree(options.out, ignore_errors=True)
    begun = time.monotonic()
    ended, outcomes = await killed(options)
    summary(outcomes)
    digests = ended.record.sealed()
    if options.compare:
        undisturbed = await undisturbed_run(options, ended.record.committed())
        same = sum(one == other for one, other in zip(digests, undisturbed.record.sealed(), strict=False))
        print(f"\n{same} of {len(digests)} sealed batches are those of the undisturbed run")
    kills = sum(1 + outcome.what.count(" + ") for outcome in outcomes)
    print(
        f"\n{kills} kills, {ended.record.committed()} steps committed in {time.monotonic() - begun:.0f} s; "
        f"{len(digests)} updates applied once each; weights {fingerprint(ended.tensors)} = replay of the sealed batches"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starter", type=Path, required=True, help="folder that `troupe_starter prepare` wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for the deployment; emptied first")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--longest", type=float, default=6.0, help="seconds from a recovery to the next kill, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=3600.0, help="no further kill after so many")
    parser.add_argument("--compare", action="store_true", help="with the same run undisturbed")
    asyncio.run(main(parser.parse_args()))
