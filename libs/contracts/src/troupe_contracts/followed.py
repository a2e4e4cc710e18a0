"""Values that are read from files of credentials, and read again when the files change: a rotation needs no restart.

One thread looks at all of them, every few seconds, so that neither a call nor the event loop waits for a file. What a
changed file holds is taken whole or not at all: while it cannot be used, as between the two halves of a pair that is being
replaced, the value before stays, which is logged once. Files that are swapped by a link, as Kubernetes does, count as
changed.
"""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Generic, TypeVar
from weakref import WeakSet

import structlog

from troupe_contracts.tokens import CredentialError

Value = TypeVar("Value")

LOOK_SECONDS: Final = 5.0
_logger = structlog.get_logger()
_lock = threading.Lock()
_followed: "WeakSet[Followed[Any]]" = WeakSet()
_watching = False


class Followed(Generic[Value]):
    """A value that follows its files for as long as somebody holds it.

    Args:
        read: makes it of the files; raises CredentialError where it cannot.
    """

    def __init__(self, files: Sequence[Path], read: Callable[[], Value]) -> None:
        self._files = tuple(files)
        self._read = read
        self._stamp = self._stamped()
        self._refused: object = None
        self.value = read()
        """As the files had it last."""
        _follow(self)

    def look(self) -> None:
        """Read the files again if they have changed."""
        stamp = self._stamped()
        if stamp == self._stamp:
            return
        try:
            self.value = self._read()
        except CredentialError as error:
            if stamp != self._refused:
                _logger.error("changed credentials cannot be used, those before stay", why=str(error))
            self._refused = stamp
            return
        self._stamp = stamp
        _logger.info("credentials have changed", files=[str(file) for file in self._files])

    def _stamped(self) -> tuple[object, ...]:
        return tuple(_stamp(file) for file in self._files)


def look_at_all() -> None:
    """Read again whatever has changed."""
    with _lock:
        followed = list(_followed)
    for each in followed:
        each.look()


def _follow(followed: "Followed[Any]") -> None:
    global _watching
    with _lock:
        _followed.add(followed)
        if not _watching:
            _watching = True
            threading.Thread(target=_watch, name="credentials", daemon=True).start()


def _watch() -> None:
    pause = threading.Event()
    while True:
        pause.wait(LOOK_SECONDS)
        look_at_all()


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """What changes with a file's content; None where it is not there."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
