"""What a local deployment writes down, so that another shell can find it: `<state>/local.json`, and a lock
beside it.

The lock is held, by the kernel, for as long as the supervisor lives; the file says who it is and where the
services are. A file without a lock is stale: its processes are looked up by number *and* start, never by
number alone.
"""

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from troupe_client.processes import Identity, boot_id


class StateFolderError(RuntimeError):
    """A path that cannot be a state folder, or a record in it that cannot be read; says which, and what to do."""


class AlreadyRunningError(RuntimeError):
    """Another supervisor holds the state folder."""


@dataclass(frozen=True)
class ServiceState:
    """One service of a deployment. `target` and `metrics` are empty until it serves for the first time and stay the
    same from then on; `policy_id` is empty where it has no policy."""

    pid: int
    start_ticks: int
    log: str
    policy_id: str = ""
    target: str = ""
    metrics: str = ""
    serves: bool = False
    restarts: int = 0
    ended: str = ""
    """How and when it ended by itself last."""

    @property
    def identity(self) -> Identity:
        return Identity(self.pid, self.start_ticks)


@dataclass(frozen=True)
class Deployment:
    """A supervisor and its services, by name, as of the last change."""

    supervisor: Identity
    tag: str
    profile: str
    ready: bool = False
    services: Mapping[str, ServiceState] = field(default_factory=dict)

    def processes(self) -> list[Identity]:
        """The services' main processes."""
        return [service.identity for service in self.services.values()]


class StateFolder:
    """The folder of one local deployment."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path / "local.json"
        self._lock = path / "local.lock"

    def create(self) -> None:
        """Makes the folder if it is not there, for its owner alone."""
        with self._usable():
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Holds the folder, for a supervisor's life.

        Raises:
            AlreadyRunningError: another supervisor has it; the text names both.
        """
        self.create()
        with self._usable():
            opened = self._lock.open("a")
        with opened as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise AlreadyRunningError(self.held_text()) from None
            yield

    def is_held(self) -> bool:
        """True while a supervisor has the folder."""
        with self._usable():
            if not self._lock.exists():
                return False
            opened = self._lock.open()
        with opened as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def write(self, deployment: Deployment) -> None:
        """Replaces the file, whole or not at all."""
        draft = self._file.with_suffix(".draft")
        draft.write_text(json.dumps({"boot_id": boot_id(), **asdict(deployment)}, indent=2) + "\n")
        draft.replace(self._file)

    def read(self) -> Deployment | None:
        """What is written; None without a file, or with one from before the machine's last boot.

        Raises:
            StateFolderError: it cannot be read.
        """
        with self._usable():
            try:
                text = self._file.read_text(errors="replace")
            except FileNotFoundError:
                return None
        try:
            return self._parsed(json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StateFolderError(
                f"{self._file} is no record of a deployment ({error!r:.80}): remove it, and look for processes that it "
                "may have named"
            ) from error

    @staticmethod
    def _parsed(written: dict[str, Any]) -> Deployment | None:
        if written.pop("boot_id") != boot_id():
            return None
        services = {name: ServiceState(**service) for name, service in written.pop("services").items()}
        return Deployment(supervisor=Identity(**written.pop("supervisor")), services=services, **written)

    @contextmanager
    def _usable(self) -> Iterator[None]:
        """Names the folder in what the file system says of it."""
        try:
            yield
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            named = str(self.path) if isinstance(error, OSError) else repr(str(self.path))
            if isinstance(error, FileExistsError | NotADirectoryError) and self.path.is_file():
                reason = "is not a folder"
            raise StateFolderError(f"{named} {reason}: name a folder that can be written with --state") from error

    def clear(self) -> None:
        """Removes the file."""
        self._file.unlink(missing_ok=True)

    def held_text(self) -> str:
        """Who holds the folder, and what to do."""
        deployment = self.read()
        who = f"process {deployment.supervisor.pid}" if deployment is not None else "another process"
        return (
            f"{self.path} is in use by {who}: stop it with `troupe down --state {self.path}`, "
            "or take another folder with --state"
        )
