"""Processes as /proc shows them."""

from contextlib import suppress
from pathlib import Path


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def descendants(process: int) -> list[int]:
    """Living descendants, oldest first."""
    found: list[int] = []
    try:
        threads = list(Path(f"/proc/{process}/task").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return found
    for thread in threads:
        try:
            listed = (thread / "children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        for child in map(int, listed):
            found += [child, *descendants(child)]
    return sorted(filter(is_alive, found))


def with_in_environment(text: str) -> list[int]:
    """Processes whose environment holds `text`, as far as this user may look."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if text.encode() in environment.read_bytes():
                found.append(int(environment.parent.name))
        except OSError:
            continue
    return found


def resident_bytes(process: int) -> int:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(f"process {process} has no resident memory")


def descriptors(process: int) -> int:
    return len(list(Path(f"/proc/{process}/fd").iterdir()))


def heap(process: int) -> int:
    """An address that is mapped in the process; one of our own where we ourselves may not look."""
    for whose in (str(process), "self"):
        with suppress(PermissionError):
            for line in Path(f"/proc/{whose}/maps").read_text().splitlines():
                if line.endswith("[heap]"):
                    return int(line.split("-")[0], 16)
    raise ProcessLookupError(f"neither process {process} nor this one has a heap")
