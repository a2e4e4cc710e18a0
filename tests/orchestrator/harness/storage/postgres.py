"""A PostgreSQL server of our own: in a temp folder, on a Unix socket, gone with whoever started it.

The binaries are those of the distribution's packages (`make postgres`). They refuse to run as root, so root runs them as
`postgres`, or as `nobody` where there is no such user.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psycopg

_START_SECONDS = 60.0
# Nothing here outlives the machine: what survives the server's death is enough. A benchmark asks for more.
_FAST = ("-c", "fsync=off", "-c", "full_page_writes=off", "-c", "synchronous_commit=off")


def binaries() -> Path | None:
    """The folder of the newest installed PostgreSQL."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


class PostgresServer:
    """One server, started by `start` and ended by `remove`; it can be stopped, killed and started again meanwhile."""

    def __init__(self, binaries: Path, durable: bool = False) -> None:
        self._binaries = binaries
        # A socket's path has at most 107 characters: not below pytest's own folders.
        self.folder = Path(tempfile.mkdtemp(prefix="troupe-pg-"))
        self._options = () if durable else _FAST
        self._as_user = unprivileged()
        self._databases = 0
        self._process: subprocess.Popen[bytes] | None = None
        if self._as_user:
            shutil.chown(self.folder, *self._as_user)
        self._call([str(binaries / "initdb"), "-D", str(self.folder / "data"), "-U", "troupe", "-A", "trust", "-N"])

    def start(self) -> None:
        """Start the server and wait until it takes connections.

        On the main thread: the server ends with the thread that started it.
        """
        log = (self.folder / "log").open("ab")
        command = [str(self._binaries / "postgres"), "-D", str(self.folder / "data"), "-k", str(self.folder)]
        command += ["-c", "listen_addresses=", "-c", "max_connections=200", *self._options]
        with log:
            self._process = subprocess.Popen(
                demoted(command, "--pdeathsig", "INT"), stdout=log, stderr=log, cwd=self.folder
            )
        give_up = time.monotonic() + _START_SECONDS
        while True:
            try:
                psycopg.connect(self._dsn("postgres")).close()
            except psycopg.OperationalError:
                assert self._process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < give_up, (self.folder / "log").read_text()
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        """End it as an operator's restart does: every connection is told and closed."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """End it as a power cut does."""
        self._end(signal.SIGQUIT)

    def remove(self) -> None:
        """Stop it and leave nothing behind."""
        self.stop()
        shutil.rmtree(self.folder)

    def new_database(self) -> str:
        """URL of an empty database."""
        self._databases += 1
        name = f"test_{self._databases}"
        self.execute(f"CREATE DATABASE {name}")
        return f"postgresql://troupe@/{name}?host={self.folder}"

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run one statement outside of any store."""
        with psycopg.connect(self._dsn(database), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def _dsn(self, database: str) -> str:
        return f"host={self.folder} user=troupe dbname={database}"

    def _end(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)
            self._process = None

    def _call(self, command: Sequence[str]) -> None:
        done = subprocess.run(demoted(command), cwd=self.folder, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()


def demoted(command: Sequence[str], *options: str) -> list[str]:
    """The command as the user whom PostgreSQL runs as, with these options of setpriv."""
    as_user = unprivileged()
    user = [f"--reuid={as_user[0]}", f"--regid={as_user[1]}", "--clear-groups"] if as_user else []
    return ["setpriv", *user, *options, *command] if user or options else list(command)


def unprivileged() -> tuple[int, int] | None:
    """User and group to run as; None where we are nobody special ourselves."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return entry.pw_uid, entry.pw_gid
    raise RuntimeError("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")
