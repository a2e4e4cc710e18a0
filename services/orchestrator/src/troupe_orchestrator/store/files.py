"""Files of the store: they appear whole and durable, or not at all.

Written beside their place, fsynced, renamed, the folder fsynced. A process that dies meanwhile leaves a `.NAME.partial`,
which nobody reads and `training.retention` removes; that of an eval job that never came to be stays.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Errors that end once there is room."""
_REMEDIES = {
    errno.ENOSPC: "free space on its file system",
    errno.EDQUOT: "raise the quota of its file system or free space on it",
    errno.EROFS: "mount its file system for writing",
    errno.EACCES: "let the orchestrator write there",
}


class FileWriteError(OSError):
    """A file of the store could not be written: nothing of it is there."""


def partial_name(path: Path) -> Path:
    """Where a file is written before it gets its name."""
    return path.with_name(f".{path.name}.partial")


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file so that it is whole and on disk when this returns.

    Raises:
        FileWriteError: it could not; names the file and the remedy.
    """
    _write(path, lambda sink: pq.write_table(table, sink, compression="zstd"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it is whole and on disk when this returns.

    Raises:
        FileWriteError: it could not; names the file and the remedy.
    """
    _write(path, lambda sink: sink.write(content))


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def bytes_on_disk(path: str | Path) -> int:
    """Bytes of a file, or of all files below a folder; 0 for what this machine does not see."""
    path = Path(path)
    if not path.is_dir():
        return path.stat().st_size if path.is_file() else 0
    return sum(file.lstat().st_size for file in path.rglob("*") if file.is_file())


def _write(path: Path, put: Callable[[IO[bytes]], Any]) -> None:
    partial = partial_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as sink:
            put(sink)
            sink.flush()
            os.fsync(sink.fileno())
        partial.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        # What it took may be the very space that is missing.
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise FileWriteError(error.errno, _explained(path, error)) from error


def _explained(path: Path, error: OSError) -> str:
    remedy = _REMEDIES.get(error.errno or 0, "mend its file system")
    existing = next((folder for folder in path.parents if folder.exists()), Path("/"))
    free = shutil.disk_usage(existing).free
    return f"{path} cannot be written ({error.strerror}; {free:,} bytes are free): {remedy}"
