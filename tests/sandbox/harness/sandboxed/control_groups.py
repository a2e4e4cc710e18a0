"""Control groups of this machine for a service under test, where this user may make them (version 1, as root)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MOUNT = Path("/sys/fs/cgroup")


def _own(controller: str) -> Path | None:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return _MOUNT / controller / path.lstrip("/")
    return None


def why_not(controller: str) -> str:
    """Why there can be no group here; empty if there can."""
    own = _own(controller)
    if own is None or not (own / "cgroup.procs").exists():
        return f"no cgroup v1 controller {controller!r} is mounted here"
    return "" if os.access(own, os.W_OK) else f"{own} is not writable: run as root"


@contextmanager
def group(controller: str, name: str, **limits: int) -> Iterator[Path]:
    """A group below this process's own; its file `cgroup.procs` takes processes."""
    own = _own(controller)
    assert own is not None
    made = own / f"{name}-{os.getpid()}"
    made.mkdir()
    try:
        for key, value in limits.items():
            (made / f"{controller}.{key}").write_text(str(value))
        yield made
    finally:
        # What is left of a service that failed goes back, so that the group can go.
        for process in (made / "cgroup.procs").read_text().split():
            (own / "cgroup.procs").write_text(process)
        made.rmdir()
