"""What is done inside containers from outside: their end is waited for, the learner's ranks get signals."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rendered.kubectl import kubectl

from deployed.installation import Installation

_WATCH_SECONDS = 1800
"""Longer than anything is waited for; what is left of it in a container that lives on ends by itself."""
_SIGNAL_RANKS = """
import os, signal, sys
others = [pid for pid in os.listdir('/proc') if pid.isdigit() and int(pid) != os.getpid()]
for pid in others:
    try:
        if b'troupe_learner.rank' in open(f'/proc/{pid}/cmdline', 'rb').read():
            os.kill(int(pid), signal.Signals[sys.argv[1]])
    except (FileNotFoundError, ProcessLookupError):
        pass
"""


@contextmanager
def watched(commands: Sequence[Sequence[str]]) -> Iterator[Callable[[], bool]]:
    """Whether a container has ended since the block began. A pod that is deleted by force is off the API server's list
    seconds before its containers end; a process in one ends with it.

    Args:
        commands: each runs a command in a container.
    """
    watches = [
        subprocess.Popen(
            [*command, "sh", "-c", f"echo begun; exec sleep {_WATCH_SECONDS}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        for command in commands
    ]
    try:
        for watch in watches:
            assert watch.stdout is not None
            assert watch.stdout.readline(), f"no command runs in a container: {watch.args!r}"
        yield lambda: any(watch.poll() is not None for watch in watches)
    finally:
        for watch in watches:
            watch.kill()
            watch.communicate()


def signal_ranks(installation: Installation, name: str) -> None:
    """Sends a signal to the ranks in every pod of the learner; where there are none now, to nobody.

    Args:
        name: of the signal, such as SIGSTOP.
    """
    for command in installation.inside_each("learner"):
        kubectl(*command[1:], "python", "-c", _SIGNAL_RANKS, name, check=False)
