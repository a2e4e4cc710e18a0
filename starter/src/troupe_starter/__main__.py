"""Command line of the starter.

python -m troupe_starter tasks --split held_out --count 450 --out FILE.jsonl
python -m troupe_starter coldstart --out FOLDER --seed 0
"""

import argparse
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
            _cold_start(options)
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
    of_cold_start = commands.add_parser("coldstart", help="train the policy that reinforcement learning starts from")
    of_cold_start.add_argument("--out", type=Path, required=True, help="model folder to write; must not exist")
    of_cold_start.add_argument("--seed", type=int, default=0)
    of_cold_start.add_argument("--threads", type=int, default=2)
    return parser


def _cold_start(options: argparse.Namespace) -> None:
    # Imported when needed: torch takes longer to load than the task suite to write.
    import torch

    from troupe_starter import coldstart

    torch.set_num_threads(options.threads)

    def show(done: int, total: int, what: str) -> None:
        if done % 50 == 0 or done == total:
            print(f"{done}/{total} {what}", flush=True)

    outcome = coldstart.run(options.out, options.seed, coldstart.Settings(), show)
    print(f"{options.out}: {outcome.steps} steps in {outcome.seconds:.0f} s, {outcome.measured}")


if __name__ == "__main__":
    sys.exit(main())
