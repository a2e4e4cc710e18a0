"""A stand-in API server for each test."""

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "harness"))

from requested.place import Place, place
from standin_api.server import StandInApi, standin_api
from troupe_kubernetes.api import Api


@pytest.fixture
def standin() -> Iterator[StandInApi]:
    with standin_api() as server:
        yield server


@pytest.fixture
def api(standin: StandInApi, tmp_path: Path) -> Api:
    return Api.from_kubeconfig(file=str(standin.kubeconfig(tmp_path)))


@pytest.fixture
async def here(standin: StandInApi, tmp_path: Path) -> AsyncIterator[Place]:
    async with place(standin, tmp_path) as made:
        yield made
