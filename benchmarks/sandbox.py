"""What the sandbox costs, beside what a user could pick instead.

    python benchmarks/sandbox.py [--rounds 5] [--profiles full,pod] [--core 0] [--only mixes,service,…] [--long]
        [--scripts 1000] [--solutions 1000] [--cases 100000]

Everything runs on one core, rivals and ours in interleaved rounds of the same run, so that figures of a shared machine
can be compared: read the ratios. The first round only warms up. Every output is compared byte for byte with that of
`subprocess.run`, every verdict must be OK. Rows with a goal say whether it is met. How far it has come goes to standard
error; on busy cores take smaller sizes (`--rounds 1 --scripts 100 --solutions 100 --cases 5000`), which the rows name.
"""

import argparse
import os
from collections.abc import Callable

from sandbox_parts.costs import costs
from sandbox_parts.flat import after_many, flat
from sandbox_parts.measuring import Goal, Sizes
from sandbox_parts.mixes import mixes
from sandbox_parts.rivals import pin
from sandbox_parts.service import through_the_service
from sandbox_parts.workflows import workflows

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
