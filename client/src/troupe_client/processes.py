"""Processes of a local deployment: who is still there, and how to end all of them.

Services start processes of their own (engine workers, ranks of a gang, scripts), some in sessions of their own, so neither a
process group nor the list of children is the whole. A process is ours when it descends from a service, or when its
environment carries the deployment's tag; which service's it is stands beside that. What it held in /dev/shm is noted before
it is killed, since nobody removes that for a killed process.
"""

import os
import signal
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

# Not a TROUPE_ variable: services refuse those that they do not know.
TAG: Final = "_TROUPE_DEPLOYMENT"
SERVICE: Final = "_TROUPE_SERVICE"
SHARED_MEMORY: Final = Path("/dev/shm")
_GONE: Final = (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError, PermissionError, FileNotFoundError)


@dataclass(frozen=True)
class Identity:
    """A process, told apart from a later one with the same number by when it started, in clock ticks since
    boot."""

    pid: int
    start_ticks: int

    def alive(self) -> bool:
        """True while it runs; an ended one that nobody has waited for is not alive."""
        return start_ticks(self.pid) == self.start_ticks


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if there is none, or it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name, in parentheses, may hold anything; of the fields after it the 1st is the state, the 18th the number of
    # threads, the 20th the start. A main thread can end before the others: until they have too, it is all there.
    fields = stat.rpartition(")")[2].split()
    ended = fields[0] in "ZX" and int(fields[17]) <= 1
    return None if ended else int(fields[19])


def identify(pid: int) -> Identity | None:
    """The process with this number now."""
    ticks = start_ticks(pid)
    return None if ticks is None else Identity(pid, ticks)


def boot_id() -> str:
    """Changes with every boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def members(roots: Iterable[Identity], tag: str, service: str = "") -> set[Identity]:
    """The living processes among `roots`, their descendants, and all that carry the tag, and the service's name where one
    is given."""
    pids = set(_tagged({f"{TAG}={tag}", f"{SERVICE}={service}"} if service else {f"{TAG}={tag}"}))
    for root in roots:
        if root.alive():
            pids.add(root.pid)
            with suppress(*_GONE):
                pids |= {child.pid for child in psutil.Process(root.pid).children(recursive=True)}
    return {identity for pid in pids if (identity := identify(pid)) is not None}


def shared_memory_of(processes: Iterable[Identity]) -> set[Path]:
    """Files in /dev/shm that these processes have mapped or open."""
    found: set[Path] = set()
    for process in processes:
        with suppress(*_GONE):
            for line in Path(f"/proc/{process.pid}/maps").read_text(errors="replace").splitlines():
                found.add(Path(line.split(maxsplit=5)[-1]))
        with suppress(*_GONE):
            for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
                with suppress(*_GONE):
                    found.add(descriptor.readlink())
    return {path for path in found if path.parent == SHARED_MEMORY and not path.name.endswith(" (deleted)")}


def send(processes: Iterable[Identity], signum: signal.Signals) -> None:
    """Sends a signal to each that is still there."""
    for process in processes:
        if process.alive():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(process.pid, signum)


def kill_all(roots: Iterable[Identity], known: Iterable[Identity], tag: str, service: str = "") -> set[Path]:
    """Kills `known` and all members (`members`); returns what they held in /dev/shm.

    They are stopped first, until none is new: a process that is being killed could start another.
    """
    roots = list(roots)
    stopped: set[Identity] = set()
    while new := ({process for process in known if process.alive()} | members(roots, tag, service)) - stopped:
        send(new, signal.SIGSTOP)
        stopped |= new
    held = shared_memory_of(stopped)
    send(stopped, signal.SIGKILL)
    return held


def _tagged(marks: Collection[str]) -> Iterable[int]:
    wanted = {mark.encode() for mark in marks}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(*_GONE):
                if wanted <= set((entry / "environ").read_bytes().split(b"\0")):
                    yield int(entry.name)
