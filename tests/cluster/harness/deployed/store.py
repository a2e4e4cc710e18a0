"""The store of the deployment: PostgreSQL through a forwarded port, files through the orchestrator's pod.

Both may be away for a while, since it is what the tests do to them: everything is tried again until then.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.types.json import set_json_loads

_PATIENCE_SECONDS: Final = 600.0
_PAUSE_SECONDS: Final = 0.2


class ClusterStore:
    """What `killing.record.Store` is, of a deployment."""

    def __init__(self, target: str, password: Callable[[], str], command: Callable[[], list[str]]) -> None:
        """
        Args:
            target: host:port that leads to the database.
            password: of the database, which is another once the deployment has been made again.
            command: what runs a command in a pod that has the store's files; LookupError while there is none.
        """
        host, port = target.split(":")
        self._access = f"host={host} port={port} user=troupe dbname=troupe connect_timeout=5"
        self._password = password
        self._command = command
        self._connection: psycopg.Connection | None = None

    def rows(self, query: str, run_id: str) -> list[tuple[Any, ...]]:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                return self._connected().execute(query.replace("?", "%s"), (run_id,)).fetchall()
            except psycopg.OperationalError:
                self._connection = None
                if time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE_SECONDS)

    def keep(self, file: str, kept: Path) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                command = [*self._command(), "cat", file]
                kept.write_bytes(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
                return
            except (LookupError, subprocess.SubprocessError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE_SECONDS)

    def _connected(self) -> psycopg.Connection:
        if self._connection is None:
            self._connection = psycopg.connect(self._access, password=self._password(), autocommit=True)
            set_json_loads(_as_text, self._connection)
        return self._connection


def _as_text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
