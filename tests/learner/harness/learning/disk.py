"""A small disk that can be filled to the last page: a real tmpfs, so root only."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Disk:
    """Where it is mounted."""

    path: Path

    @contextmanager
    def filled(self, leaving: int) -> Iterator[None]:
        """Within the block there is room for `leaving` bytes only."""
        filler = self.path / "filler"
        status = os.statvfs(self.path)
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize - leaving)
        try:
            yield
        finally:
            filler.unlink()

    def entries(self, folder: str = ".") -> list[str]:
        return sorted(each.name for each in (self.path / folder).iterdir() if each.name != "filler")


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[Disk]:
    """A tmpfs of `size` at `path`; skips the test where none can be mounted."""
    path.mkdir()
    if os.geteuid() != 0:
        pytest.skip("a small disk is mounted by root only")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
