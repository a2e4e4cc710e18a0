"""Faults on a real cluster: the `local` overlay on the current context of kubectl. Takes an hour; `make test-cluster`."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "harness"), str(HERE.parent / "chaos/harness"), str(HERE.parent / "k8s/harness")]

from deployed.installation import Installation, installed
from deployed.matrix import ROWS


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """The `local` overlay, applied and serving."""
    with installed(tmp_path_factory.mktemp("installation")) as it:
        yield it


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if ROWS:
        terminalreporter.section("recovery on the cluster")
        for row in ROWS:
            terminalreporter.write_line(str(row))
