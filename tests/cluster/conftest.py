"""Faults on a real cluster: the `local` overlay on the current context of kubectl. Takes an hour; `make test-cluster`."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "harness"))
sys.path.insert(0, str(Path(__file__).parents[1] / "chaos/harness"))
sys.path.insert(0, str(Path(__file__).parents[1] / "k8s/harness"))
sys.path.insert(0, str(Path(__file__).parents[1] / "security/harness"))

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
