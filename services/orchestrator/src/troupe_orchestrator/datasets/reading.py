"""Reads data sets whose paths callers name: regular files, whole, within a limit. Nothing else is read or waited for."""

import os
import stat
from pathlib import Path

from troupe_contracts.errors import InvalidArgument


def read_data_set(path: Path, limit: int, field: str) -> bytes:
    """The bytes of a file. Not for an event loop.

    Args:
        limit: most bytes that it may have.
        field: of the request, that names the path.

    Raises:
        InvalidArgument: it cannot be read, is larger, or is no regular file.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InvalidArgument(field, f"{path}: is no regular file: name one")
            if status.st_size > limit:
                raise InvalidArgument(field, f"{path}: has {status.st_size} bytes, the maximum is {limit}: split it")
            # No more than that, also of a file that grows meanwhile.
            return file.read(status.st_size)
    except OSError as error:
        raise InvalidArgument(field, f"{path}: {error.strerror}, as the orchestrator sees it") from error
    except ValueError as error:  # a path with a null byte
        raise InvalidArgument(field, f"{str(path)!r}: {error}") from error


def _open_at_once(path: str, flags: int) -> int:
    """Without this flag a pipe is waited for until somebody writes to it."""
    return os.open(path, flags | os.O_NONBLOCK)
