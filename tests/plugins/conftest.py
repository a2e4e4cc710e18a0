"""A folder on the search path, of this process and of those that it starts, to install plug-ins into."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "harness"))
sys.path.insert(0, str(Path(__file__).parents[1] / "orchestrator" / "services" / "harness"))

from distributions import EXAMPLES, install_example


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder of installed distributions."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")])))
    yield folder
    for name in [module.stem for module in folder.glob("*.py")]:
        sys.modules.pop(name, None)


@pytest.fixture
def examples(site: Path) -> Path:
    """The folder with all examples installed."""
    for kind in sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir()):
        install_example(kind, site)
    return site
