"""What the interpreter itself says of a solution, without any sandbox: the reference that verdicts are compared with.

`python -I -S plain.py` reads one program a line, forks for it, runs setup, solution and case, and answers `passes`, `fails`
or `takes too long`. A case sees the names of setup and of Python where the solution has others, as in the sandbox. Only for
programs that are known to be harmless.
"""

import builtins
import json
import os
import resource
import signal
import subprocess
import sys
from typing import Self

CPU_SECONDS = 0.5
PASSES, FAILS, TAKES_TOO_LONG = "passes", "fails", "takes too long"


class PlainInterpreter:
    """A process that answers; use it as a context."""

    def __init__(self, python: str) -> None:
        self._process = subprocess.Popen(
            [python, "-I", "-S", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={}
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def ask(self, setup: str, solution: str, cases: tuple[str, ...], entry_point: str) -> str:
        """What comes of the cases, each in a process of its own, up to the first that does not pass."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([setup, solution, cases, entry_point]), file=self._process.stdin, flush=True)
        return self._process.stdout.readline().strip()


def run(setup: str, solution: str, case: str, entry_point: str) -> str:
    """Runs them one after another in a child."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
            silent = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(silent, descriptor)
            names: dict[str, object] = {"__name__": "__main__"}
            execute(setup, names)
            kept = vars(builtins) | names
            execute(solution, names)
            hidden = {name for name in names if name in kept and name != entry_point and names[name] is not kept[name]}
            execute(case, names | {name: kept[name] for name in hidden - {"__name__"}} if hidden else names)
            status = 0
        finally:
            os._exit(status)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == -signal.SIGPROF:
        return TAKES_TOO_LONG
    return PASSES if code == 0 else FAILS


def execute(source: str, names: dict[str, object]) -> None:
    exec(compile(source, "solution", "exec", dont_inherit=True), names)


def main() -> None:
    """Answers until the questions end."""
    for line in sys.stdin:
        setup, solution, cases, entry_point = json.loads(line)
        answers = (run(setup, solution, case, entry_point) for case in cases)
        print(next((answer for answer in answers if answer != PASSES), PASSES), flush=True)


if __name__ == "__main__":
    main()
