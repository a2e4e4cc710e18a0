"""Services under attack: as installed under each profile, and builds with a layer switched off."""

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "harness"))

from hostile import outside as surroundings
from hostile import weakened
from hostile.outside import Outside
from hostile.service import Service, serving

Weakened = Callable[[str, tuple[str, ...]], Service]


@pytest.fixture(scope="session")
def outside() -> Iterator[Outside]:
    """What must stay out of reach."""
    with surroundings.outside() as around:
        yield around


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Service]]:
    """The installed service under a profile, started once."""
    with ExitStack() as held:
        running: dict[str, Service] = {}

        def under(profile: str) -> Service:
            if profile not in running:
                running[profile] = held.enter_context(serving(tmp_path_factory.mktemp(profile), profile))
                running[profile].settle()
            return running[profile]

        yield under


@pytest.fixture(scope="session")
def weakened_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The build with switches, compiled if it is not up to date."""
    if shutil.which("cargo") is None:
        pytest.skip("cargo is not installed: positive controls need a build of the sandbox with switches")
    return weakened.build(tmp_path_factory.mktemp("weakened"))


@pytest.fixture(scope="session")
def without(weakened_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weakened]:
    """A service with these layers off; the last one is kept, because tests that share one follow each other."""
    with ExitStack() as held:
        running: dict[tuple[str, tuple[str, ...]], Service] = {}
        numbers = count()

        def under(profile: str, off: tuple[str, ...]) -> Service:
            if (profile, off) not in running:
                held.pop_all().close()
                running.clear()
                folder = tmp_path_factory.mktemp(f"{profile}-{next(numbers)}")
                service = serving(folder, profile, weakened.environment(weakened_package, off))
                running[profile, off] = held.enter_context(service)
            return running[profile, off]

        yield under
