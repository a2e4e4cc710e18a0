"""What `benchmarks/sandbox.py` measures: the mixes of programs, and the ways to run them that a user could pick instead.

Every rival runs the same program on the same interpreter, isolated from site packages as the sandbox's is (numpy needs
them, so there it keeps them). One that is not installed is left out by name.
"""

import atexit
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from troupe_sandbox.settings import base_interpreter

TRIVIAL = "import sys\nprint(sum(map(int, sys.stdin)))\n"
TYPICAL = """
import sys, heapq, bisect, collections, itertools, functools, re, json, math
n = int(sys.stdin.readline())
graph = collections.defaultdict(list)
for a in range(n):
    for step in (1, 7):
        graph[a].append(((a + step) % n, step * step % 11 + 1))
distance = [math.inf] * n
distance[0] = 0
queue = [(0, 0)]
while queue:
    d, a = heapq.heappop(queue)
    if d > distance[a]:
        continue
    for b, w in graph[a]:
        if d + w < distance[b]:
            distance[b] = d + w
            heapq.heappush(queue, (d + w, b))
print(sum(distance))
"""
NUMPY = """
import sys
import numpy as np
n = int(sys.stdin.readline())
a = np.arange(n * n, dtype=np.float64).reshape(n, n) % 17
print(int((a @ a.T).trace()), int(np.sort(a.ravel())[-1]))
"""
HEAVY = """
n = int(input())
sieve = bytearray([1]) * (n + 1)
count = 0
for p in range(2, n + 1):
    if sieve[p]:
        count += 1
        for q in range(p * p, n + 1, p):
            sieve[q] = 0
print(count)
"""


@dataclass(frozen=True)
class Mix:
    """A program, its input, and how many cases of it one measurement takes."""

    name: str
    program: str
    given: str
    cases: int
    # The sandbox preloads it; the rivals import it.
    module: str = ""


MIXES = (
    Mix("trivial", TRIVIAL, "1\n2\n3\n", 200),
    Mix("typical", TYPICAL, "100\n", 200),
    Mix("numpy", NUMPY, "24\n", 100, "numpy"),
    Mix("CPU-heavy", HEAVY, "200000\n", 20),
)


def interpreter(mix: Mix) -> list[str]:
    """The interpreter as a user would start it for this mix."""
    return [sys.executable, "-I"] if mix.module else [str(base_interpreter()), "-I", "-S"]


def _folders() -> list[str]:
    """What an interpreter reads, outside /usr."""
    found = {str(base_interpreter().parents[1]), sys.prefix}
    return sorted(path for path in found if not path.startswith("/usr/"))


def _plain(mix: Mix) -> list[str]:
    return interpreter(mix)


def _bubblewrap(mix: Mix) -> list[str]:
    command = ["bwrap", "--unshare-all", "--die-with-parent", "--cap-drop", "ALL", "--dev", "/dev", "--tmpfs", "/tmp"]
    command += ["--ro-bind", "/usr", "/usr"]
    for path in ("/lib", "/lib64", *_folders()):
        command += ["--ro-bind-try", path, path]
    return [*command, "--chdir", "/tmp", *interpreter(mix)]


def _nsjail(mix: Mix) -> list[str]:
    command = ["nsjail", "-Mo", "-Q", "--user", "99999", "--group", "99999", "--disable_proc", "--rlimit_as", "4096"]
    command += ["-T", "/tmp"]
    for path in ("/usr", "/lib", "/lib64", *_folders()):
        command += ["-R", path] if Path(path).exists() else []
    return [*command, "-R", "/dev/null", "-R", "/dev/urandom", "--cwd", "/tmp", "--", *interpreter(mix)]


def _isolate(mix: Mix) -> list[str]:
    folders = [f"--dir={path}" for path in _folders()]
    # It counts threads as processes and allows one; numpy's libraries start more.
    more = ["--processes"] if mix.module else []
    return ["isolate", "--silent", *folders, *more, "--run", "--", *interpreter(mix)]


RIVALS: dict[str, tuple[str, Callable[[Mix], list[str]]]] = {
    "subprocess.run": ("", _plain),
    "bubblewrap": ("bwrap", _bubblewrap),
    "nsjail": ("nsjail", _nsjail),
    "isolate": ("isolate", _isolate),
}


def installed() -> list[str]:
    """The rivals that this machine has, ready to run; the others are named on standard error."""
    missing = [name for name, (program, _) in RIVALS.items() if program and shutil.which(program) is None]
    if missing:
        print(f"not installed, left out: {', '.join(missing)}", file=sys.stderr)
    found = [name for name in RIVALS if name not in missing]
    if "isolate" in found:
        # It runs programs in a box that must be there before.
        subprocess.run(["isolate", "--init"], check=True, stdout=subprocess.DEVNULL)
        atexit.register(subprocess.run, ["isolate", "--cleanup"], check=True)
    return found


def run(command: Sequence[str], mix: Mix) -> str:
    """One case, as `subprocess.run` is used everywhere; its output."""
    done = subprocess.run([*command, "-c", mix.program], input=mix.given, capture_output=True, text=True, check=True)
    return done.stdout


def pin(core: int) -> None:
    """This process and all that it starts run on one core."""
    os.sched_setaffinity(0, {core})
