"""The learner's own folder: batches, exports, scores, rank logs. Held by one learner at a time.

A learner waits a while for one that is about to end: a pod may be replaced before its processes are gone.

Everything but `lineages.json` and `fences.json` is worthless once the process has ended, and is removed at the next start.
"""

import fcntl
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Self

_PATIENCE_SECONDS: Final = 5.0
_PAUSE_SECONDS: Final = 0.2


class FolderInUse(RuntimeError):
    """Another learner holds the folder."""


@dataclass(frozen=True)
class WorkFolder:
    """Paths inside the folder. The lock is held as long as this object lives."""

    root: Path
    lock: IO[bytes]

    @classmethod
    def open(cls, root: Path) -> Self:
        """Takes the folder and empties it. Blocks while another process has it.

        Raises:
            FolderInUse: another process keeps it.
        """
        root = root.resolve()
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / "lock").open("wb")
        give_up = time.monotonic() + _PATIENCE_SECONDS
        while not _locked(lock):
            if time.monotonic() > give_up:
                lock.close()
                raise FolderInUse(f"TROUPE_WORK_DIR={root} is held by another learner: give each its own")
            time.sleep(_PAUSE_SECONDS)
        folder = cls(root, lock)
        for each in (folder.batches, folder.exports, folder.scores, folder.ranks):
            shutil.rmtree(each, ignore_errors=True)
            each.mkdir()
        return folder

    @property
    def batches(self) -> Path:
        return self.root / "batches"

    @property
    def exports(self) -> Path:
        return self.root / "exports"

    @property
    def scores(self) -> Path:
        return self.root / "scores"

    @property
    def ranks(self) -> Path:
        return self.root / "ranks"

    @property
    def carried(self) -> Path:
        """A gang agent's: files of the command under way. Made and removed with them."""
        return self.root / "carried"

    @property
    def lineages(self) -> Path:
        return self.root / "lineages.json"

    @property
    def fences(self) -> Path:
        return self.root / "fences.json"


def _locked(lock: IO[bytes]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
