"""A SQLite file that another process keeps locked."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_LOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.readline()
"""


@contextlib.contextmanager
def locked(file: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process holds the file's write lock; it lets go when its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", _LOCKER, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    try:
        yield process
    finally:
        process.communicate()
