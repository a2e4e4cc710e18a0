"""A stand-in API server, and a cluster of pods behind it."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "kubernetes" / "harness"))

from standin_api.server import StandInApi, standin_api
from troupe_client.kubernetes import place
from troupe_contracts.identity import NOBODY, assume
from troupe_kubernetes.api import Api


@pytest.fixture
def standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInApi]:
    """Which $KUBECONFIG names."""
    with standin_api() as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path)))
        yield server
    place.choose(None)
    assume(NOBODY)


@pytest.fixture
def api(standin: StandInApi, tmp_path: Path) -> Api:
    return Api.from_kubeconfig(file=str(tmp_path / "kubeconfig"))
