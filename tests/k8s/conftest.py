"""The rendered manifests."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "harness"))
sys.path.insert(0, str(Path(__file__).parents[1] / "security" / "harness"))
sys.path.insert(0, str(Path(__file__).parents[1] / "orchestrator" / "harness"))

from rendered.overlays import RENDERED, Manifests, render


@pytest.fixture(params=RENDERED)
def manifests(request: pytest.FixtureRequest) -> Manifests:
    """Each overlay in turn, and each component that no overlay has."""
    return render(request.param)
