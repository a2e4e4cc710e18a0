"""Writes that last, and what a failed one means to whoever asked for it: which code, which path, which remedy.

No torch, no gRPC server.
"""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final

from troupe_contracts.errors import Exhausted, FailedPrecondition

RETRY_SECONDS: Final = 10.0
_ROOM_BYTES: Final = 1 << 20
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def is_full(error: OSError) -> bool:
    """Whether there was no room, rather than no right or no such place."""
    return error.errno in _NO_ROOM


def described(error: OSError) -> str:
    """The failure in words, with the remedy."""
    remedy = "make room there" if is_full(error) else "make it writable, or choose another place"
    return f"cannot be written ({error.strerror or error}): {remedy}, then call again; nothing was left half-written"


def no_room(folder: Path) -> str:
    """Why nothing more fits into a folder; empty if something does. Writes: call it off the event loop."""
    try:
        with TemporaryFile(dir=folder) as file:
            file.write(bytes(_ROOM_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return f"{folder} {described(error)}" if is_full(error) else ""
    return ""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around what writes `path` or below it.

    Raises:
        Exhausted: the disk is full.
        FailedPrecondition: it cannot be written for another reason.
    """
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise Exhausted(f"{path} {described(error)}", retry_after_seconds=RETRY_SECONDS) from error
        raise FailedPrecondition(str(path), described(error)) from error


def replace_json(path: Path, value: object) -> None:
    """Gives a file another content, which is on the disk when this returns, whole or not at all. Blocks.

    Raises:
        Exhausted: the disk is full.
        FailedPrecondition: it cannot be written for another reason.
    """
    partial = path.with_suffix(".partial")
    with writing(path):
        with partial.open("w") as file:
            json.dump(value, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        fsync(path.parent)


def fsync(path: Path) -> None:
    """Brings a file, or the names in a folder, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
