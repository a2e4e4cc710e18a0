"""The stand-in API server."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "kubernetes" / "harness"))

from standin_api.server import StandInApi, standin_api
from troupe_kubernetes.api import Api


@pytest.fixture
def standin() -> Iterator[StandInApi]:
    with standin_api() as server:
        yield server


@pytest.fixture
def api(standin: StandInApi, tmp_path: Path) -> Api:
    return Api.from_kubeconfig(file=str(standin.kubeconfig(tmp_path)))
