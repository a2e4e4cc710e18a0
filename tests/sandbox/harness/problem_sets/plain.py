"""What the interpreter itself says of a solution, without any sandbox: the reference that verdicts are compared with.

`python -I -S plain.py` reads one program a line, forks for it, runs setup, solution and case in one namespace as the
sandbox does, and answers `passes`, `fails` or `takes too long`. Only for programs that are known to be harmless.
"""

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

    def ask(self, setup: str, solution: str, cases: tuple[str, ...]) -> str:
        """What comes of the cases, each in a process of its own, up to the first that does not pass."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([setup, solution, cases]), file=self._process.stdin, flush=True)
        return self._process.stdout.readline().strip()


def run(parts: list[str]) -> str:
    """Runs the parts one after another in a child."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
            silent = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(silent, descriptor)
            namespace: dict[str, object] = {"__name__": "__main__"}
            for part in parts:
                exec(compile(part, "solution", "exec", dont_inherit=True), namespace)
            status = 0
        finally:
            os._exit(status)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == -signal.SIGPROF:
        return TAKES_TOO_LONG
    return PASSES if code == 0 else FAILS


def main() -> None:
    """Answers until the questions end."""
    for line in sys.stdin:
        setup, solution, cases = json.loads(line)
        answers = (run([setup, solution, case]) for case in cases)
        print(next((answer for answer in answers if answer != PASSES), PASSES), flush=True)


if __name__ == "__main__":
    main()
