"""Command line of the starter.

    python -m troupe_starter prepare --out FOLDER --seed 0          all that the starter profile needs
    python -m troupe_starter coldstart --out FOLDER --seed 0        the policy alone
    python -m troupe_starter tasks --split held_out --count 450 --out FILE.jsonl

Progress is printed as lines `DONE/PLANNED PHASE`.
"""

import argparse
import os
import sys
from pathlib import Path

from troupe_starter import tasks
from troupe_starter.task import SPLITS


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        if options.command == "tasks":
            tasks.write_jsonl(tasks.sample(options.split, options.count, options.seed), options.out)
        else:
            _train(options)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"troupe_starter {options.command}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m troupe_starter", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    of_tasks = commands.add_parser("tasks", help="write a problem file")
    of_tasks.add_argument("--split", choices=SPLITS, required=True)
    of_tasks.add_argument("--count", type=int, required=True)
    of_tasks.add_argument("--seed", type=int, default=0)
    of_tasks.add_argument("--out", type=Path, required=True)
    for name, what in (
        ("prepare", "write all that the starter profile needs"),
        ("coldstart", "train the policy that reinforcement learning starts from"),
    ):
        training = commands.add_parser(name, help=what)
        training.add_argument("--out", type=Path, required=True, help="folder to write; must not exist")
        training.add_argument("--seed", type=int, default=0)
        training.add_argument("--threads", type=int, default=1, help="torch threads; more need cores that are free")
    return parser


def _train(options: argparse.Namespace) -> None:
    # Read when torch is loaded. Threads that spin while they wait make two threads on a busy machine ten times
    # slower than one.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Imported when needed: torch takes longer to load than the task suite to write.
    import torch

    from troupe_starter import coldstart, preparation

    torch.set_num_threads(options.threads)
    work = preparation.prepare if options.command == "prepare" else coldstart.run
    outcome = work(options.out, options.seed, coldstart.Settings(), _show)
    print(f"{options.out}: {outcome.steps} steps in {outcome.seconds:.0f} s, {outcome.measured}")


def _show(done: int, planned: int, phase: str) -> None:
    if done % 10 == 0 or done == planned:
        print(f"{done}/{planned} {phase}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
