"""Processes as the kernel shows them."""

from pathlib import Path


def private_bytes(pid: int) -> int:
    """Memory that only this process has, with its page tables."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    private = sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_"))
    status = Path(f"/proc/{pid}/status").read_text()
    tables = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmPTE:"))
    return (private + tables) * 1024


def children(pid: int) -> set[int]:
    """Direct children of all threads of a process."""
    lists = (path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    return {int(child) for text in lists for child in text.split()}
