"""The stand-in API server."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "kubernetes" / "harness"))

from standin_api.server import StandInApi, standin_api


@pytest.fixture
def standin() -> Iterator[StandInApi]:
    with standin_api() as server:
        yield server
